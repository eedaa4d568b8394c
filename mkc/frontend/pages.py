"""Rooms -> pages. Which pages of the pools that sequences share each of them has: as many as its tokens need, of those that are free."""

from collections.abc import Sequence

from mkc.errors import InputError

NOBODYS = 0  # the page for rows that nobody asked for: those behind the end of a prompt, and of rows without a sequence


class Pages:
    """Pages of `size` tokens, `count` of them and nobody's, for B sequences of at most `most` pages each.

    Numbers are those of pages in every layer's pools. The same page is never two sequences'.
    """

    def __init__(self, size: int, count: int, batch: int, most: int) -> None:
        self.size, self.count, self.batch, self.most = size, count, batch, most
        self.free = [*range(count, NOBODYS, -1)]  # the last is the next to be taken
        self.held: list[int] = []

    def share_out(self, rooms: Sequence[int]) -> list[list[int]]:
        """The pages of sequences with room for so many tokens each, in order. Raises InputError, and gives none, when too few are free."""
        counts = [-(-room // self.size) for room in rooms]
        if sum(counts) > len(self.free):
            raise InputError(
                f"{len(rooms)} sequences of {', '.join(map(str, rooms))} tokens, prompt and answer, take {sum(counts)} pages of "
                f"{self.size}; {len(self.free)} are free, for {len(self.free) * self.size} tokens: ask for fewer, or for "
                f"pool={(self.count - len(self.free) + sum(counts)) * self.size}"
            )
        taken = [[self.free.pop() for _ in range(count)] for count in counts]
        self.held += [page for pages in taken for page in pages]
        return taken

    def take_back(self) -> None:
        """All that were given are free again."""
        self.free += reversed(self.held)
        self.held.clear()
