"""Tasks -> what is over before each starts, where published words come in: they put nothing but themselves in order.

Two things are kept apart: what is *complete*, so that its results can be read, and what has been *read*, so that it can be
overwritten. A poll tells that whoever published has done with its earlier tasks: it counts for the second alone.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from mkc.ir.tasks import Tasks
from mkc.ir.tiling import Range

Ranges = tuple[Range, ...]


@dataclass(frozen=True, slots=True)
class Known:
    """Nodes of which all tasks are over, as bits: the second step's stand above the first's."""

    complete: int = 0
    read: int = 0

    def __or__(self, other: "Known") -> "Known":
        return Known(self.complete | other.complete, self.read | other.read)


@dataclass(frozen=True, slots=True)
class Found:
    """Earlier tasks in conflict with one: whose results it needs or replaces, who reads what it overwrites, whom it polls.

    Of those it polls some are `sure`, whatever the data are; of these `whole` are nodes all of whose words it looks at.
    """

    made: Ranges
    read: Ranges
    polled: Ranges
    sure: Ranges
    whole: Ranges


@dataclass(slots=True)
class Reach:
    """Drops edges that other edges, and the order of the workers' queues, imply."""

    tasks: Tasks
    workers: int
    begin: Known = field(default_factory=Known)  # of each task of the step: what was over when it was permitted
    known: list[Known] = field(default_factory=list)
    last: dict[int, Known] = field(default_factory=dict)  # by worker: of the pinned task that it was given last
    of_part: dict[Range, Known] = field(default_factory=dict)
    behind_node: dict[int, int] = field(default_factory=dict)  # nodes whose tasks all stand before tasks of this one
    homes: list[frozenset[int]] = field(default_factory=list)  # of pinned nodes: the workers that have tasks
    newest: dict[int, int] = field(default_factory=dict)  # by worker: the pinned task itself
    followed: set[int] = field(default_factory=set)  # tasks after which some other surely comes

    def reduced(self, found: Found) -> Ranges:
        """The edges that remain, of which those to be polled need no event."""
        number = len(self.known)
        worker = self.worker_of(number)
        known = self.begin | self.last.get(worker, Known())
        kept: list[Range] = []
        for node, part in self._latest_first(found.made):
            if not known.complete >> node & 1:
                kept.append(part)
                known |= self._behind(part) | self._all_of(node, part)
        for _, part in self._latest_first(found.sure):
            known |= Known(0, self._behind(part).read)
        for node, part in self._latest_first(found.whole):
            known |= Known(0, self._all_of(node, part).read)
        for node, part in self._latest_first(found.read):
            if not known.read >> node & 1:
                kept.append(part)
                known |= self._behind(part) | self._all_of(node, part)
        self.known.append(known)
        self.followed.update(t for part in (*kept, *found.whole) for t in range(*part))
        if worker >= 0:
            self.last[worker] = known
            self.followed.add(self.newest.get(worker, number))
            self.newest[worker] = number
            self.followed.discard(number)
        return merged([*kept, *found.polled])

    def after(self, ranges: Ranges) -> Known:
        """What is over once these tasks are."""
        known = Known()
        for node, part in self._latest_first(ranges):
            known |= self._behind(part) | self._all_of(node, part)
        return known

    def leaves(self) -> Ranges:
        """Tasks of the first step that nobody surely comes after."""
        return merged((t, t + 1) for t in range(len(self.tasks.tasks)) if t not in self.followed)

    def worker_of(self, number: int) -> int:
        """-1 where it is not known yet."""
        number %= len(self.tasks.tasks)
        node = self.tasks.node_index(number)
        tiling, first = self.tasks.tilings[node], self.tasks.first[node]
        return (number - first) * self.workers // tiling.size if tiling.pinned else -1

    def _behind(self, part: Range) -> Known:
        if part not in self.of_part:
            known = Known()
            for number in range(*part):
                known |= self.known[number]
            self.of_part[part] = known
        return self.of_part[part]

    def _all_of(self, node: int, part: Range) -> Known:
        """The node itself, when the part is all of it, and what stands before it in the queues of its workers."""
        if part != self.extent(node):
            return Known()
        if node not in self.behind_node:
            self.behind_node[node] = 1 << node | self._before(node)
        return Known(self.behind_node[node], self.behind_node[node])

    def _before(self, node: int) -> int:
        home, bits = self._home(node), 0
        for other in range(node):
            if self._home(other) and self._home(other) <= home:
                bits |= 1 << other
        return bits

    def _home(self, node: int) -> frozenset[int]:
        if not self.homes:
            ends = zip(self.tasks.first, self.tasks.first[1:], strict=False)
            self.homes = [frozenset(self.worker_of(t) for t in range(*end)) - {-1} for end in ends]
        return self.homes[node % len(self.homes)]

    def _latest_first(self, ranges: Ranges) -> Sequence[tuple[int, Range]]:
        """Later nodes imply earlier ones, never the other way round."""
        return [part for r in reversed(ranges) for part in reversed(list(self.by_node(r)))]

    def by_node(self, r: Range) -> Iterable[tuple[int, Range]]:
        lo, hi = r
        while lo < hi:
            step, local = divmod(lo, len(self.tasks.tasks))
            node = self.tasks.node_index(local) + step * len(self.tasks.graph.nodes)
            stop = min(hi, self.extent(node)[1])
            yield node, (lo, stop)
            lo = stop

    def extent(self, node: int) -> Range:
        step, local = divmod(node, len(self.tasks.graph.nodes))
        shift = step * len(self.tasks.tasks)
        return self.tasks.first[local] + shift, self.tasks.first[local + 1] + shift


def merged(ranges: Iterable[Range]) -> Ranges:
    made: list[Range] = []
    for lo, hi in sorted(ranges):
        if made and lo <= made[-1][1]:
            made[-1] = (made[-1][0], max(hi, made[-1][1]))
        else:
            made.append((lo, hi))
    return tuple(made)


def clipped(ranges: Ranges, lo: int, hi: int) -> Ranges:
    return tuple((max(a, lo), min(b, hi)) for a, b in ranges if a < hi and lo < b)
