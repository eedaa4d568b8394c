"""Levels 2 to 4. Who computes which tile, what must come before what, who signals whom, and who runs where."""

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from mkc.ir.graph import Graph, Kind, Node, Tensor
from mkc.ir.span import Box, Span, span
from mkc.ir.target import Target
from mkc.ir.tiling import Range, Tiling

ARENA, WORDS = "arena", "words"  # the memories that are ours


@dataclass(frozen=True, slots=True)
class Access:
    """The bytes of one memory that a task touches. All arena storages are one memory, all words another."""

    memory: str
    span: Span

    def conflicts(self, other: "Access") -> bool:
        return self.memory == other.memory and self.span.meets(other.span)

    def __str__(self) -> str:
        return f"{self.memory}{self.span}"


def access(tensor: Tensor, box: Box) -> Access:
    """What touching `box` of `tensor` means in memory."""
    storage, itemsize = tensor.storage, tensor.dtype.itemsize
    local = span(tensor.layout, box, itemsize)
    if not storage.kind.is_ours:
        return Access(storage.name, local)
    memory = ARENA if storage.kind is Kind.ARENA else WORDS
    return Access(memory, Span(local.start + storage.start, local.stop + storage.start, local.run, local.levels))


@dataclass(frozen=True, slots=True)
class Task:
    """One grid point of a node: the ranges of its axes, and the written memory it reads and writes."""

    node: int
    ranges: tuple[Range, ...]
    reads: tuple[Access, ...]  # of memory that some task writes
    writes: tuple[Access, ...]

    def __str__(self) -> str:
        ranges = ", ".join(f"{lo}:{hi}" for lo, hi in self.ranges)
        return f"[{ranges}] reads {' '.join(map(str, self.reads)) or '-'} writes {' '.join(map(str, self.writes))}"


@dataclass(frozen=True, slots=True)
class Tasks:
    """Tasks in program order, as yet unlinked. Node i owns tasks[first[i] : first[i + 1]]."""

    graph: Graph
    tilings: tuple[Tiling, ...]
    tasks: tuple[Task, ...]
    first: tuple[int, ...]

    def node_of(self, task: int) -> Node:
        return self.graph.nodes[self.tasks[task].node]

    def node_index(self, task: int) -> int:
        return bisect_right(self.first, task) - 1

    def name(self, task: int) -> str:
        """A task's name for people: `linear_3[0:64, 0:1]`."""
        ranges = ", ".join(f"{lo}:{hi}" for lo, hi in self.tasks[task].ranges)
        return f"{self.node_of(task).name}[{ranges}]"

    def __str__(self) -> str:
        lines = []
        for i, node in enumerate(self.graph.nodes):
            lines.append(f"{node.name}: {self.first[i + 1] - self.first[i]} tasks")
            lines += [f"  {t} {self.tasks[t]}" for t in range(self.first[i], self.first[i + 1])]
        return "\n".join(lines)


def by_node(first: Sequence[int], tasks: Range) -> Iterator[tuple[int, Range]]:
    """Tasks, cut where another node begins, given the first task of each node and the end of the last."""
    lo, hi = tasks
    node = bisect_right(first, lo) - 1
    while (end := first[node + 1]) < hi:
        yield node, (lo, end)
        node, lo = node + 1, end
    yield node, (lo, hi)


def ranges_text(ranges: tuple[Range, ...]) -> str:
    return " ".join(f"{lo}" if hi == lo + 1 else f"{lo}:{hi}" for lo, hi in ranges) or "-"


@dataclass(frozen=True, slots=True)
class TaskGraph:
    """Tasks, and for each the tasks that must come before it, as ranges of task numbers.

    `carried[t]` are tasks of the step before, when the graph runs many steps; `stop` are the tasks after which the
    graph's `until` is settled.
    """

    tasks: Tasks
    before: tuple[tuple[Range, ...], ...]
    carried: tuple[tuple[Range, ...], ...]
    stop: tuple[Range, ...] = ()

    def __str__(self) -> str:
        def line(t: int) -> str:
            carried = f" carried {ranges_text(self.carried[t])}" if self.carried[t] else ""
            return f"{t} {self.tasks.name(t)} after {ranges_text(self.before[t])}{carried}"

        return "\n".join(map(line, range(len(self.before))))


@dataclass(frozen=True, slots=True)
class Wait:
    """Wait for all signals of `event`: those of this step (lag 0) or of the step before (lag 1)."""

    event: int
    lag: int = 0

    def __str__(self) -> str:
        return f"e{self.event}" + ("'" * self.lag)


@dataclass(frozen=True, slots=True)
class EventGraph:
    """Each task waits for some events and signals at most one; an event fires after `fanin` signals a step."""

    graph: TaskGraph
    fanin: tuple[int, ...]
    signals: tuple[int, ...]  # per task: the event, or -1
    waits: tuple[tuple[Wait, ...], ...]  # per task
    stop: tuple[Wait, ...] = ()  # what `until` waits for

    @property
    def tasks(self) -> Tasks:
        return self.graph.tasks

    def __str__(self) -> str:
        def line(t: int) -> str:
            waits = f" waits {' '.join(map(str, self.waits[t]))}" if self.waits[t] else ""
            signal = f" signals e{self.signals[t]}" if self.signals[t] >= 0 else ""
            return f"{t} {self.tasks.name(t)}{waits}{signal}"

        events = [f"e{e} fires after {n}" for e, n in enumerate(self.fanin)]
        return "\n".join([*events, *map(line, range(len(self.waits)))])


@dataclass(frozen=True, slots=True)
class Schedule:
    """Who runs what, in which order. Static: a queue for each worker. Dynamic: one queue that all draw from."""

    events: EventGraph
    target: Target
    policy: str
    queues: tuple[tuple[int, ...], ...]
    waits: tuple[tuple[Wait, ...], ...]  # per task, without those that the queue's order implies
    predicted_ns: float  # of one step, by the cost model

    def __str__(self) -> str:
        head = f"{self.policy} on {self.target}: {self.predicted_ns:.0f} ns a step predicted"
        queues = [f"w{w}: {' '.join(map(str, queue))}" for w, queue in enumerate(self.queues)]
        return "\n".join([head, *queues])
