"""TaskGraph -> EventGraph. Tasks that are awaited by the same consumers share one event."""

from collections import defaultdict

from mkc.ir.tasks import EventGraph, TaskGraph, Wait
from mkc.ir.tiling import Range

Ranges = tuple[Range, ...]
Need = tuple[Ranges, Ranges]  # awaited of this step, and of the step before


def signal(graph: TaskGraph) -> EventGraph:
    needs = dict.fromkeys([*zip(graph.before, graph.carried, strict=True), (graph.stop, ())])
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
        tuple(by_need[need] for need in zip(graph.before, graph.carried, strict=True)),
        by_need[graph.stop, ()],
    )


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
