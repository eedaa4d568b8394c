"""TaskGraph -> EventGraph. Tasks that are awaited by the same consumers share one event."""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import product

from mkc.ir.graph import Kind, Node
from mkc.ir.tasks import EventGraph, TaskGraph, Tasks, Wait, by_node
from mkc.ir.tiling import Range

Ranges = tuple[Range, ...]
Need = tuple[Ranges, Ranges]  # awaited of this step, and of the step before


def signal(graph: TaskGraph) -> EventGraph:
    published = _Published(graph.tasks)
    before = tuple(map(published.without, range(len(graph.before)), graph.before))
    needs = dict.fromkeys([*zip(before, graph.carried, strict=True), (graph.stop, ())])
    awaited_by = _awaited_by(list(needs))
    events = {signature: event for event, signature in enumerate(dict.fromkeys(s for _, s in awaited_by))}
    signals = [-1] * len(graph.before)
    fanin = [0] * len(events)
    for (lo, hi), signature in awaited_by:
        fanin[events[signature]] += hi - lo
        signals[lo:hi] = [events[signature]] * (hi - lo)
    waits: dict[int, list[Wait]] = defaultdict(list)
    for signature, event in events.items():
        for need, lag in signature:
            waits[need].append(Wait(event, lag))
    by_need = {need: tuple(waits[i]) for i, need in enumerate(needs)}
    return EventGraph(
        graph,
        tuple(fanin),
        tuple(signals),
        tuple(by_need[need] for need in zip(before, graph.carried, strict=True)),
        by_need[graph.stop, ()],
    )


class _Published:
    """Which edges of a step need no event, since words carry them: readers look for values of their step, and find them or wait.

    Edges from step to step have no such words: what `link` has kept of them is waited for.
    """

    def __init__(self, tasks: Tasks) -> None:
        self.tasks = tasks
        self.touched = [_touched(node) for node in tasks.graph.nodes]
        self.carries: dict[tuple[int, int], bool] = {}
        self.known: dict[tuple[int, Ranges], Ranges] = {}

    def without(self, task: int, ranges: Ranges) -> Ranges:
        """The ranges, less the tasks that hand on to this one by words alone."""
        consumer = self.tasks.tasks[task].node
        if (consumer, ranges) not in self.known:
            parts = (found for r in ranges for found in by_node(self.tasks.first, r))
            kept = (part for producer, part in parts if not self._by_words(producer, consumer))
            self.known[consumer, ranges] = _merged(kept)
        return self.known[consumer, ranges]

    def _by_words(self, producer: int, consumer: int) -> bool:
        """True when all that the two nodes conflict about is published words."""
        if (producer, consumer) not in self.carries:
            pairs = product(self.touched[producer], self.touched[consumer])
            conflicts = [mine.kind for mine, other in pairs if mine.conflicts(other)]
            self.carries[producer, consumer] = bool(conflicts) and set(conflicts) == {Kind.WORDS}
        return self.carries[producer, consumer]


@dataclass(frozen=True, slots=True)
class _Touch:
    """What a node does to a storage."""

    name: str
    kind: Kind
    start: int  # in the memory of its kind, where that is ours
    stop: int
    writes: bool

    def conflicts(self, other: "_Touch") -> bool:
        same = self.start < other.stop and other.start < self.stop if self.kind.is_ours else self.name == other.name
        return (self.writes or other.writes) and self.kind is other.kind and same


def _touched(node: Node) -> tuple[_Touch, ...]:
    used = [(t.storage, False) for t in node.inputs] + [(t.storage, True) for t in node.outputs]
    return tuple(_Touch(s.name, s.kind, s.start, s.start + s.nbytes, writes) for s, writes in used if s.kind.is_written)


def _merged(parts: Iterable[Range]) -> Ranges:
    merged: list[Range] = []
    for lo, hi in parts:
        if merged and merged[-1][1] == lo:
            merged[-1] = (merged[-1][0], hi)
        else:
            merged.append((lo, hi))
    return tuple(merged)


Signature = tuple[tuple[int, int], ...]  # (number of the need, lag), all who wait


def _awaited_by(needs: list[Need]) -> list[tuple[Range, Signature]]:
    """Producers, cut wherever the set of those who wait for them changes, in order."""
    opens: dict[int, list[tuple[int, int]]] = defaultdict(list)
    closes: dict[int, list[tuple[int, int]]] = defaultdict(list)
    for number, need in enumerate(needs):
        for lag, ranges in enumerate(need):
            for lo, hi in ranges:
                opens[lo].append((number, lag))
                closes[hi].append((number, lag))
    awaited: list[tuple[Range, Signature]] = []
    waiting: set[tuple[int, int]] = set()
    previous = 0
    for at in sorted({*opens, *closes}):
        if waiting:
            awaited.append(((previous, at), tuple(sorted(waiting))))
        waiting.difference_update(closes[at])
        waiting.update(opens[at])
        previous = at
    return awaited
