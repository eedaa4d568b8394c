"""Ranges of task numbers, half open and in order."""

from collections.abc import Iterable, Iterator

from mkc.ir.tasks import Tasks, by_node
from mkc.ir.tiling import Range

Ranges = tuple[Range, ...]


def merged(ranges: Iterable[Range]) -> Ranges:
    made: list[Range] = []
    for lo, hi in sorted(ranges):
        if made and lo <= made[-1][1]:
            made[-1] = (made[-1][0], max(hi, made[-1][1]))
        else:
            made.append((lo, hi))
    return tuple(made)


def clipped(ranges: Ranges, lo: int, hi: int) -> Ranges:
    if not ranges or (lo <= ranges[0][0] and ranges[-1][1] <= hi):
        return ranges
    return tuple((max(a, lo), min(b, hi)) for a, b in ranges if a < hi and lo < b)


def without(ranges: Ranges, number: int) -> Ranges:
    """All but one."""
    if not ranges or number < ranges[0][0]:
        return ranges
    return tuple(r for lo, hi in ranges for r in ((lo, min(hi, number)), (max(lo, number + 1), hi)) if r[0] < r[1])


class Numbering:
    """Which tasks are whose. Nodes and tasks of a second step are counted on behind those of the first."""

    def __init__(self, tasks: Tasks) -> None:
        count = len(tasks.tasks)
        self.first = [*tasks.first, *(count + first for first in tasks.first[1:])]

    def extent(self, node: int) -> Range:
        return self.first[node], self.first[node + 1]

    def by_node(self, tasks: Range) -> Iterator[tuple[int, Range]]:
        """Tasks, cut where another node begins."""
        return by_node(self.first, tasks)
