"""Tasks -> what is over before each starts, where published words come in: they put nothing but themselves in order.

Two things are kept apart: what is *complete*, so that its results can be read, and what has been *read*, so that it can be
overwritten. A poll tells that whoever published has done with its earlier tasks: it counts for the second alone.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import reduce
from itertools import chain, islice, pairwise
from operator import or_

from mkc.ir.graph import Kind, Tensor
from mkc.ir.span import Box
from mkc.ir.tasks import WORDS, Access, Task, Tasks, access
from mkc.ir.tiling import Range, TileMap
from mkc.ops import registry
from mkc.passes._ledger import Ledger
from mkc.passes._ranges import Numbering, Ranges, clipped, merged, without


@dataclass(frozen=True, slots=True)
class _Known:
    """Nodes of which all tasks are over, as bits: the second step's stand above the first's."""

    complete: int = 0
    read: int = 0

    def __or__(self, other: "_Known") -> "_Known":
        return _Known(self.complete | other.complete, self.read | other.read)


@dataclass(frozen=True, slots=True)
class _Found:
    """Earlier tasks in conflict with one: whose results it needs or replaces, who reads what it overwrites, whom it polls.

    Of those it polls some are `sure`, whatever the data are; of these `whole` are nodes all of whose words it looks at.
    """

    made: Ranges
    read: Ranges
    polled: Ranges
    sure: Ranges
    whole: Ranges


class PublishedReach:
    """Drops edges that other edges, and the order of the workers' queues, imply."""

    def __init__(self, tasks: Tasks, workers: int) -> None:
        self.tasks, self.workers = tasks, workers
        self.nodes = Numbering(tasks)
        self.begin = _Known()  # of each task of the step: what was over when it was permitted
        self.known: list[_Known] = []
        self.newest: dict[int, int] = {}  # by worker: the pinned task that it was given last
        self.followed: set[Range] = set()  # tasks after which some other surely comes
        self.polls: dict[int, list[tuple[TileMap, Sequence[int]]]] = {}  # of each node: what is waited for, and by which of its tasks
        self.awaited: dict[tuple[Tensor, Box], tuple[Access, bool]] = {}
        self.parts: dict[Range, list[tuple[int, Range]]] = {}  # by node, the latest first
        self.behind: dict[Range, _Known] = {}
        self.behind_node: dict[int, int] = {}  # nodes whose tasks all stand before tasks of this one
        self.homes: list[frozenset[int]] = []  # of pinned nodes: the workers that have tasks

    def edges(self, ledger: Ledger, task: Task, end: int) -> Ranges:
        """The tasks before `end` that the next task, which is this one, has to wait for. Those it polls need no event.

        A task never waits for itself, since it stays in its queue from step to step.
        """
        itself = len(self.known) - len(self.tasks.tasks)
        found = self._found(ledger, task)
        return self._reduced(_Found(*(without(clipped(merged(ranges), 0, end), itself) for ranges in found)))

    def stop(self, ledger: Ledger, flag: Tensor) -> Ranges:
        """The tasks after which a flag is settled, and all others of the step with it.

        The decision about another step then comes after all of this one, so that no word is overwritten before it was read.
        """
        found = merged((*ledger.writers_of(access(flag, tuple((0, n) for n in flag.shape))), *self._leaves()))
        everything = _Known(0, (1 << len(self.tasks.graph.nodes)) - 1)  # stands before some leaf, so has been read
        self.begin = reduce(or_, (self._over(*part) for part in self._latest_first(found)), everything)
        return found

    def is_over(self, earlier: Range, task: int) -> bool:
        """Never sure: nothing is forgotten on the strength of an order that words might keep."""
        return False

    def _found(self, ledger: Ledger, task: Task) -> tuple[list[Range], ...]:
        """What is to become `_Found`."""
        made, read, polled, sure, whole = (list[Range]() for _ in range(5))
        for touched in task.reads:
            (polled if touched.memory == WORDS else made).extend(ledger.writers_of(touched))
        for touched in task.writes:
            read += ledger.readers_of(touched)
            if touched.memory != WORDS:
                made += ledger.writers_of(touched)
        for words, is_whole in self._sure(task):
            writers = ledger.writers_of(words)
            sure += writers
            whole += writers if is_whole else []
        return made, read, polled, sure, whole

    def _sure(self, task: Task) -> Iterator[tuple[Access, bool]]:
        """The words that a task waits for whatever the data are, and whether they are all of their tensor."""
        number = len(self.known) % len(self.tasks.tasks) - self.tasks.first[task.node]
        for tile_map, tasks in self._polls(task.node):
            if number in tasks:
                yield self._words(tile_map.tensor, tile_map.at(task.ranges))

    def _polls(self, node: int) -> list[tuple[TileMap, Sequence[int]]]:
        if node not in self.polls:
            streaming = registry()[self.tasks.graph.nodes[node].op].streaming
            polls = streaming.surely(self.tasks.graph.nodes[node], self.tasks.tilings[node]) if streaming else {}
            self.polls[node] = [(m, tasks) for m, tasks in polls.items() if m.tensor.storage.kind is Kind.WORDS]
        return self.polls[node]

    def _words(self, tensor: Tensor, box: Box) -> tuple[Access, bool]:
        if (tensor, box) not in self.awaited:
            words = access(tensor, box)
            is_whole = words.span.is_dense and words.span.stop - words.span.start == tensor.storage.nbytes
            self.awaited[tensor, box] = words, is_whole
        return self.awaited[tensor, box]

    def _reduced(self, found: _Found) -> Ranges:
        worker = self._worker_of(len(self.known))
        known = self.begin | self.known[self.newest[worker]] if worker in self.newest else self.begin
        kept: list[Range] = []
        for node, part in self._latest_first(found.made):
            if not known.complete >> node & 1:
                kept.append(part)
                known |= self._over(node, part)
        for _, part in self._latest_first(found.sure):
            known |= _Known(0, self._behind(part).read)
        for node, part in self._latest_first(found.whole):
            known |= _Known(0, self._all_of(node, part).read)
        for node, part in self._latest_first(found.read):
            if not known.read >> node & 1:
                kept.append(part)
                known |= self._over(node, part)
        self._enter(known, worker, (*kept, *found.whole))
        return merged([*kept, *found.polled])

    def _enter(self, known: _Known, worker: int, followed: Ranges) -> None:
        """The next task, before which this is known; it surely comes after all `followed`, and in its queue if it is pinned."""
        number = len(self.known)
        self.known.append(known)
        self.followed.update(followed)
        if worker in self.newest:
            self.followed.add((self.newest[worker], self.newest[worker] + 1))
        if worker >= 0:
            self.newest[worker] = number

    def _leaves(self) -> Ranges:
        """Tasks of the first step that nobody surely comes after."""
        ends = pairwise((0, *chain(*merged(self.followed)), len(self.tasks.tasks)))
        return tuple(r for r in islice(ends, 0, None, 2) if r[0] < r[1])

    def _worker_of(self, number: int) -> int:
        """-1 where it is not known yet."""
        number %= len(self.tasks.tasks)
        node = self.tasks.node_index(number)
        tiling, first = self.tasks.tilings[node], self.tasks.first[node]
        return (number - first) * self.workers // tiling.size if tiling.pinned else -1

    def _over(self, node: int, part: Range) -> _Known:
        """What is over once these tasks of a node are."""
        return self._behind(part) | self._all_of(node, part)

    def _behind(self, part: Range) -> _Known:
        """What stands before these tasks."""
        if part not in self.behind:
            self.behind[part] = reduce(or_, set(self.known[slice(*part)]))
        return self.behind[part]

    def _all_of(self, node: int, part: Range) -> _Known:
        """The node itself, when the part is all of it, and what stands before it in the queues of its workers."""
        if part != self.nodes.extent(node):
            return _Known()
        if node not in self.behind_node:
            self.behind_node[node] = 1 << node | self._before(node)
        return _Known(self.behind_node[node], self.behind_node[node])

    def _before(self, node: int) -> int:
        home, bits = self._home(node), 0
        for other in range(node):
            if self._home(other) and self._home(other) <= home:
                bits |= 1 << other
        return bits

    def _home(self, node: int) -> frozenset[int]:
        if not self.homes:
            ends = zip(self.tasks.first, self.tasks.first[1:], strict=False)
            self.homes = [frozenset(self._worker_of(t) for t in range(*end)) - {-1} for end in ends]
        return self.homes[node % len(self.homes)]

    def _latest_first(self, ranges: Ranges) -> Sequence[tuple[int, Range]]:
        """Later nodes imply earlier ones, never the other way round."""
        for r in ranges:
            if r not in self.parts:
                self.parts[r] = list(self.nodes.by_node(r))[::-1]
        return [part for r in reversed(ranges) for part in self.parts[r]]
