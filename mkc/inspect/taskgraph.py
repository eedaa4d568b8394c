"""Lowering -> networkx. Tasks or whole operators as nodes, what must come before what as edges; and the longest way through."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import networkx as nx

from mkc.compiler import Lowering
from mkc.inspect.text import count, table, time
from mkc.ir.tasks import Schedule, by_node
from mkc.ir.tiling import Range
from mkc.passes.schedule import costs


def to_networkx(lowering: Lowering) -> nx.DiGraph:
    """Tasks by number, with `name`, `op`, `path`, `node`, `worker` (None in a dynamic queue) and `ns`, as predicted.

    An edge says that its first task comes before its second in the same step. Those that others imply are not there.
    """
    tasks, owner = lowering.tasks, owners(lowering.schedule)
    graph = nx.DiGraph(name=lowering.graph.name)
    for number, ns in enumerate(costs(lowering.events, lowering.schedule.target)):
        node = tasks.node_of(number)
        facts = {
            "name": tasks.name(number),
            "op": node.op,
            "path": node.path,
            "node": tasks.tasks[number].node,
        }
        graph.add_node(number, **facts, worker=owner[number], ns=ns)
    for number, ranges in enumerate(lowering.linked.before):
        graph.add_edges_from((before, number) for lo, hi in ranges for before in range(lo, hi))
    return graph


def operators(lowering: Lowering) -> nx.DiGraph:
    """Operators by number, with `name`, `op`, `path`, `text`, `tasks` and `ns`; edges carry the number of `edges` between their tasks."""
    tasks, taken = lowering.tasks, costs(lowering.events, lowering.schedule.target)
    graph = nx.DiGraph(name=lowering.graph.name)
    for number, node in enumerate(tasks.graph.nodes):
        mine = range(tasks.first[number], tasks.first[number + 1])
        facts = {"name": node.name, "op": node.op, "path": node.path, "text": str(node)}
        graph.add_node(number, **facts, tasks=len(mine), ns=sum(taken[t] for t in mine))
    for (before, after), edges in _between(lowering).items():
        graph.add_edge(before, after, edges=edges)
    return graph


@dataclass(frozen=True, slots=True)
class CriticalPath:
    """A chain of tasks, each awaiting the one before it, that no step of this schedule is shorter than."""

    tasks: tuple[int, ...]
    names: tuple[str, ...]  # of the tasks
    operators: tuple[str, ...]  # of the tasks
    task_ns: float  # in tasks
    event_ns: float  # in handing over from one to the next

    @property
    def ns(self) -> float:
        return self.task_ns + self.event_ns

    def __str__(self) -> str:
        parts = f"{time(self.task_ns)} in tasks, {time(self.event_ns)} in events"
        head = f"{count(len(self.tasks), 'task')} in a row take {time(self.ns)}: {parts}"
        if len(self.tasks) > 60:
            kinds = Counter(self.operators).most_common()
            return "\n".join([head, *table(("operator", "tasks"), [(op, str(n)) for op, n in kinds])])
        return "\n".join(
            [head, *(f"  {number} {name}" for number, name in zip(self.tasks, self.names, strict=True))]
        )


def critical_path(lowering: Lowering) -> CriticalPath:
    """The chain of dependencies that takes longest by the cost model. A handover between workers costs an event; in a
    dynamic queue every one does."""
    tasks, target, owner = lowering.tasks, lowering.schedule.target, owners(lowering.schedule)
    taken = costs(lowering.events, target)
    finish: list[float] = []
    previous: list[int] = []
    latest: dict[Range, tuple[int, ...]] = {}

    def handover(before: int, after: int) -> float:
        return 0.0 if owner[before] is not None and owner[before] == owner[after] else target.event_ns

    for number, ranges in enumerate(lowering.linked.before):
        for r in ranges:
            if r not in latest:
                latest[r] = _latest(r, finish, owner)
        arrivals = {task: finish[task] + handover(task, number) for r in ranges for task in latest[r]}
        last = max(arrivals, key=arrivals.__getitem__, default=-1)
        previous.append(last)
        finish.append(taken[number] + arrivals.get(last, 0.0))
    chain = [max(range(len(finish)), key=finish.__getitem__, default=-1)]
    while chain[-1] >= 0:
        chain.append(previous[chain[-1]])
    path = tuple(reversed(chain[:-1]))
    return CriticalPath(
        path,
        tuple(map(tasks.name, path)),
        tuple(tasks.node_of(t).op for t in path),
        sum(taken[t] for t in path),
        sum(handover(before, after) for before, after in pairwise(path)),
    )


def _latest(tasks: Range, finish: Sequence[float], owner: Sequence[int | None]) -> tuple[int, ...]:
    """The task that finishes last, and the last of those that another worker runs: one of them is the last to be seen."""
    first = max(range(*tasks), key=finish.__getitem__)
    others = (task for task in range(*tasks) if owner[task] != owner[first])
    second = max(others, key=finish.__getitem__, default=first)
    return (first, second)


def owners(schedule: Schedule) -> list[int | None]:
    """The worker that runs each task; None where a shared queue decides."""
    owner: list[int | None] = [None] * len(schedule.waits)
    if schedule.policy != "dynamic":
        for worker, queue in enumerate(schedule.queues):
            for task in queue:
                owner[task] = worker
    return owner


def _between(lowering: Lowering) -> Counter[tuple[int, int]]:
    """How many edges lead from the tasks of one operator to those of another."""
    tasks = lowering.tasks
    found: Counter[tuple[int, int]] = Counter()
    alike = Counter((task.node, r) for task, r in zip(tasks.tasks, lowering.linked.before, strict=True))
    for (node, ranges), consumers in alike.items():
        for r in ranges:
            for producer, (lo, hi) in by_node(tasks.first, r):
                found[producer, node] += (hi - lo) * consumers
    return Counter({pair: edges for pair, edges in found.items() if pair[0] != pair[1]})
