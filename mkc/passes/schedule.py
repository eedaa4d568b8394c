"""EventGraph, Target -> Schedule. Static: list scheduling over the cost model. Dynamic: one queue in an order that is always legal."""

from collections import Counter
from dataclasses import dataclass
from heapq import heappop, heappush
from math import inf

from mkc.ir.cost import task_ns
from mkc.ir.target import Target
from mkc.ir.tasks import EventGraph, Schedule, Wait
from mkc.ops import registry

POLICIES = ("static", "dynamic")


def schedule(events: EventGraph, target: Target, policy: str = "static") -> Schedule:
    """Program order respects every dependency, so queues that keep it cannot deadlock."""
    times = costs(events, target)
    queues, makespan = _listed(events, target, times)
    if policy == "dynamic":
        everything = tuple(range(len(times)))
        return Schedule(events, target, policy, (everything,), events.waits, makespan)
    return Schedule(events, target, policy, queues, _unimplied(events, queues), makespan)


def _listed(events: EventGraph, target: Target, costs: list[float]) -> tuple[tuple[tuple[int, ...], ...], float]:
    """Each task goes to the worker it is pinned to, else to where it starts first: with the worker that is free first, or
    with the one that ran the last task it waits for. Ties go to the first free and the lowest number, so that equal work
    spreads evenly."""
    arrivals = [_Arrivals(target.event_ns) for _ in events.fanin]
    workers = _Workers(target.workers)
    pinned = _pinned(events, target.workers)
    queues: list[list[int]] = [[] for _ in range(target.workers)]
    makespan = 0.0
    for task, cost in enumerate(costs):
        awaited = [arrivals[wait.event] for wait in events.waits[task] if not wait.lag]
        worker = pinned.get(task, -1)
        if worker < 0:
            worker = _soonest(workers, awaited)
        done = _start(workers, awaited, worker) + cost
        workers.occupy(worker, done)
        queues[worker].append(task)
        if events.signals[task] >= 0:
            arrivals[events.signals[task]].add(worker, done)
        makespan = max(makespan, done)
    return tuple(map(tuple, queues)), makespan


def _soonest(workers: "_Workers", awaited: "list[_Arrivals]") -> int:
    free = workers.first_free()
    if not awaited:
        return free
    home = max(awaited, key=lambda event: event.last).worker
    return home if _start(workers, awaited, home) < _start(workers, awaited, free) else free


def _start(workers: "_Workers", awaited: "list[_Arrivals]", worker: int) -> float:
    return max(workers.free[worker], *(event.seen_by(worker) for event in awaited), 0.0)


@dataclass(slots=True)
class _Arrivals:
    """When the signals of an event have come: to all by an event's time, but a worker knows of its own at once."""

    event_ns: float
    last: float = -inf
    worker: int = -1  # that gave the last signal
    others: float = -inf  # the last signal of any other worker

    def add(self, worker: int, at: float) -> None:
        if worker != self.worker and at >= self.last:
            self.others, self.worker = self.last, worker
        elif worker != self.worker:
            self.others = max(self.others, at)
            return
        self.last = max(self.last, at)

    def seen_by(self, worker: int) -> float:
        return max(self.last, self.others + self.event_ns) if worker == self.worker else self.last + self.event_ns


class _Workers:
    """When each worker is free."""

    def __init__(self, count: int) -> None:
        self.free = [0.0] * count
        self.heap = [(0.0, worker) for worker in range(count)]  # also holds times that are past

    def first_free(self) -> int:
        while self.heap[0][0] != self.free[self.heap[0][1]]:
            heappop(self.heap)
        return self.heap[0][1]

    def occupy(self, worker: int, until: float) -> None:
        self.free[worker] = until
        heappush(self.heap, (until, worker))


def _pinned(events: EventGraph, workers: int) -> dict[int, int]:
    """The worker of each task of a pinned node."""
    tasks = events.tasks
    return {
        first + point: point * workers // tiling.size
        for first, tiling in zip(tasks.first, tasks.tilings, strict=False)
        if tiling.pinned
        for point in range(tiling.size)
    }


def costs(events: EventGraph, target: Target) -> list[float]:
    """Nanoseconds of each task: its share of its node's bytes and operations."""
    tasks = events.tasks
    times: list[float] = []
    for node, tiling in zip(tasks.graph.nodes, tasks.tilings, strict=True):
        flops = registry()[node.op].flops(node)
        for ranges in tiling.ranges():
            share = 1.0
            for (lo, hi), axis in zip(ranges, tiling.grid, strict=True):
                share *= (hi - lo) / axis.extent
            nbytes = sum(m.moved(ranges) for m in (*tiling.imaps, *tiling.omaps))
            times.append(task_ns(target, nbytes, flops * share))
    return times


def _unimplied(events: EventGraph, queues: tuple[tuple[int, ...], ...]) -> tuple[tuple[Wait, ...], ...]:
    """Waits that the order of the worker's own queue does not already keep: awaited before, or signalled by itself."""
    waits = list(events.waits)
    for queue in queues:
        known: set[Wait] = set()
        whole = Counter(events.signals[task] for task in queue)  # signals of this worker in a step, by event
        own: Counter[int] = Counter()  # so far
        for task in queue:
            waits[task] = tuple(
                w for w in waits[task] if w not in known and (whole if w.lag else own)[w.event] < events.fanin[w.event]
            )
            known.update(waits[task])
            own[events.signals[task]] += 1
    return tuple(waits)
