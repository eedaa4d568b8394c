"""Happens-before over a few steps of a task list, tried out pair by pair: what the passes must give."""

import itertools
from collections.abc import Callable, Iterable

from laws.test_span import bytes_of

from mkc.ir.tasks import Access, EventGraph, Schedule, Task, TaskGraph, Tasks
from mkc.ir.tiling import Range

Order = list[int]  # per task of every step, a bit for each that must come before it


def closure(count: int, before: Callable[[int], Iterable[int]]) -> Order:
    """All that comes before each of `count` tasks, given some of it; edges point back."""
    order: Order = []
    for number in range(count):
        bits = 0
        for earlier in before(number):
            assert earlier < number
            bits |= 1 << earlier | order[earlier]
        order.append(bits)
    return order


def by_conflicts(tasks: Tasks, steps: int) -> Order:
    """Every task after every earlier one that it shares a byte with, unless both only read it, or their node says no."""
    count = len(tasks.tasks)
    disturb = [[_disturb(a, b) for b in tasks.tasks] for a in tasks.tasks]

    def apart(one: int, other: int) -> bool:
        first, then = (divmod(t, count) for t in (one, other))
        node = tasks.tasks[first[1]].node
        together = first[0] == then[0] and node == tasks.tasks[then[1]].node
        return together and bool(tasks.tilings) and tasks.tilings[node].apart

    return closure(steps * count, lambda t: (e for e in range(t) if disturb[t % count][e % count] and not apart(t, e)))


def _disturb(a: Task, b: Task) -> bool:
    return _share(a.writes, (*b.reads, *b.writes)) or _share(a.reads, b.writes)


def _share(some: Iterable[Access], others: Iterable[Access]) -> bool:
    others = tuple(others)
    return any(x.memory == y.memory and not bytes_of(x.span).isdisjoint(bytes_of(y.span)) for x in some for y in others)


def by_link(graph: TaskGraph, steps: int) -> Order:
    count = len(graph.before)

    def before(number: int) -> Iterable[int]:
        step, task = divmod(number, count)
        yield from (step * count + p for p in numbers(graph.before[task]))
        yield from ((step - 1) * count + p for p in numbers(graph.carried[task]) if step)

    return closure(steps * count, before)


def numbers(ranges: Iterable[Range]) -> list[int]:
    return [p for lo, hi in ranges for p in range(lo, hi)]


def by_plan(plan: Schedule, steps: int) -> Order:
    """What queues, events and the decision about each further step enforce."""
    events = plan.events
    count, signalled = len(plan.waits), producers(events)
    follows = {} if plan.policy == "dynamic" else {t: p for queue in plan.queues for p, t in itertools.pairwise(queue)}
    wraps = {} if plan.policy == "dynamic" else {queue[0]: queue[-1] for queue in plan.queues if queue}
    stops = [p for wait in events.stop for p in signalled[wait.event]]

    def before(number: int) -> Iterable[int]:
        step, task = divmod(number, count)
        if task in follows:
            yield step * count + follows[task]
        if step and task in wraps:
            yield (step - 1) * count + wraps[task]
        yield from ((step - w.lag) * count + p for w in plan.waits[task] if step >= w.lag for p in signalled[w.event])
        yield from ((step - 1) * count + p for p in stops if step)

    return closure(steps * count, before)


def producers(events: EventGraph) -> list[list[int]]:
    return [[t for t, signal in enumerate(events.signals) if signal == event] for event in range(len(events.fanin))]
