"""Tasks -> TaskGraph. A task comes after every earlier task whose tile it would disturb, or be disturbed by."""

from itertools import pairwise

from mkc.ir.graph import Kind
from mkc.ir.tasks import TaskGraph, Tasks
from mkc.passes._ledger import Ledger
from mkc.passes._ranges import Ranges, clipped
from mkc.passes._reach import Reach
from mkc.passes._reach_published import PublishedReach


def link(tasks: Tasks, workers: int = 0) -> TaskGraph:
    """A graph that loops is linked over two steps: what the second finds of the first is carried from step to step.

    Among `workers` the tasks of pinned nodes have their places already, where words are published.
    """
    reach = PublishedReach(tasks, workers) if _publishes(tasks) else Reach(tasks)
    count, ledger = len(tasks.tasks), Ledger()
    after: list[Ranges] = []
    stop: Ranges = ()
    for step in range(1 + tasks.graph.loops):
        for node, (first, end) in enumerate(pairwise(tasks.first)):
            apart = bool(tasks.tilings) and tasks.tilings[node].apart
            for local in range(first, end):
                after.append(reach.edges(ledger, tasks.tasks[local], step * count + (first if apart else local)))
                ledger.enter(tasks.tasks[local], step * count + local, apart)
            ledger.settle(reach.is_over)
        if step == 0 and tasks.graph.until is not None:
            stop = reach.stop(ledger, tasks.graph.until)
    carried = tuple(clipped(ranges, 0, count) for ranges in after[count:]) or ((),) * count
    return TaskGraph(tasks, tuple(after[:count]), carried, stop)


def _publishes(tasks: Tasks) -> bool:
    return any(storage.kind is Kind.WORDS for storage in tasks.graph.storages)
