"""Compilations -> Explanation. What a kernel is made of, the bytes it must move, and the time that takes at least."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from mkc.compiler import Compilation, Lowering
from mkc.inspect.text import count, size, table, time
from mkc.ir.graph import Graph, Kind, Node, Storage, Tensor
from mkc.ir.target import Target
from mkc.ops import registry
from mkc.passes.schedule import costs

FIXED = (Kind.PARAM, Kind.CONST)


@dataclass(frozen=True, slots=True)
class OpTotal:
    """All operators of a kind in a section."""

    op: str
    operators: int
    tasks: int
    nbytes: int  # their operands, each once
    work_ns: float  # of all workers together, predicted


@dataclass(frozen=True, slots=True)
class Section:
    """One graph of a kernel. Times are of one step."""

    name: str
    ops: tuple[OpTotal, ...]  # most work first
    events: int
    weight_bytes: int  # parameters and constants that a step reads
    state_bytes: int  # inputs, outputs and states, at their full extent
    floor_ns: float  # the bytes above over the target's read bandwidth
    predicted_ns: float

    @property
    def operators(self) -> int:
        return sum(total.operators for total in self.ops)

    @property
    def tasks(self) -> int:
        return sum(total.tasks for total in self.ops)


@dataclass(frozen=True, slots=True)
class Explanation:
    """What became of a model. `kernels` has the sections of each; `fallbacks` what runs in PyTorch, and why."""

    target: Target | None  # None when there are no kernels
    kernels: tuple[tuple[Section, ...], ...]
    fallbacks: tuple[str, ...]

    @staticmethod
    def of(compilations: Sequence[Compilation], fallbacks: Iterable[object] = ()) -> "Explanation":
        """From kernels for one target."""
        kernels = tuple(tuple(map(_section, made.sections)) for made in compilations)
        return Explanation(
            compilations[0].target if compilations else None, kernels, tuple(map(str, fallbacks))
        )

    @property
    def predicted_ns(self) -> float:
        """One step of everything compiled."""
        return sum(section.predicted_ns for kernel in self.kernels for section in kernel)

    @property
    def floor_ns(self) -> float:
        """What reading and writing its memory once takes at least."""
        return sum(section.floor_ns for kernel in self.kernels for section in kernel)

    def __str__(self) -> str:
        if self.target is None:
            return "\n".join(["nothing was compiled; all of it runs in PyTorch", *self._in_torch()])
        lines = [f"{count(len(self.kernels), 'kernel')} for {self.target}"]
        for number, kernel in enumerate(self.kernels):
            for section in kernel:
                which = f"kernel {number}, " if len(self.kernels) > 1 else ""
                lines += ["", *_lines(which + section.name, section, self.target)]
        last = ["in PyTorch:", *self._in_torch()] if self.fallbacks else ["nothing runs in PyTorch"]
        return "\n".join([*lines, "", *last])

    def _in_torch(self) -> list[str]:
        return [f"  {fallback}" for fallback in self.fallbacks]


def _lines(name: str, section: Section, target: Target) -> list[str]:
    work = sum(total.work_ns for total in section.ops)
    rows = [
        (
            t.op,
            f"{t.operators:,}",
            f"{t.tasks:,}",
            size(t.nbytes),
            time(t.work_ns),
            f"{100 * t.work_ns / max(work, 1):.0f} %",
        )
        for t in section.ops
    ]
    rate = target.workers * target.bytes_per_ns * 1e9
    weights, state = size(section.weight_bytes), size(section.state_bytes)
    return [
        f"{name}: {count(section.operators, 'operator')}, {count(section.tasks, 'task')}, {count(section.events, 'event')}",
        *table(("operator", "count", "tasks", "operands", "work", "share"), rows),
        f"  memory: {weights} of weights, {state} of inputs, states and outputs at their full extent",
        f"  floor {time(section.floor_ns)} a step at {size(rate)}/s; predicted {time(section.predicted_ns)}",
    ]


def _section(lowering: Lowering) -> Section:
    tasks, target = lowering.tasks, lowering.schedule.target
    taken = costs(lowering.events, target)
    groups: dict[str, list[int]] = defaultdict(list)
    for number, node in enumerate(tasks.graph.nodes):
        groups[node.op].append(number)
    totals = [
        OpTotal(
            op,
            len(numbers),
            sum(tasks.first[n + 1] - tasks.first[n] for n in numbers),
            sum(nbytes for n in numbers for _, nbytes in _operands(tasks.graph.nodes[n])),
            sum(sum(taken[tasks.first[n] : tasks.first[n + 1]]) for n in numbers),
        )
        for op, numbers in groups.items()
    ]
    weights, state = _memory(tasks.graph)
    return Section(
        lowering.graph.name,
        tuple(sorted(totals, key=lambda t: -t.work_ns)),
        len(lowering.events.fanin),
        weights,
        state,
        (weights + state) / (target.workers * target.bytes_per_ns),
        lowering.schedule.predicted_ns,
    )


def _memory(graph: Graph) -> tuple[int, int]:
    """Bytes of weights, and of the caller's memory, that one step touches; no byte of a storage counts twice."""
    touched: dict[Storage, int] = defaultdict(int)
    for node in graph.nodes:
        for tensor, nbytes in _operands(node):
            if not tensor.storage.kind.is_ours:
                touched[tensor.storage] += nbytes
    moved = {storage: min(nbytes, storage.nbytes) for storage, nbytes in touched.items()}
    weights = sum(nbytes for storage, nbytes in moved.items() if storage.kind in FIXED)
    return weights, sum(moved.values()) - weights


def _operands(node: Node) -> list[tuple[Tensor, int]]:
    """The tensors of an operator and how many bytes of each it touches.

    Who reads a table by an index touches few of its rows: no operand counts more elements than there are operations.
    """
    flops = registry()[node.op].flops(node)
    most = max([flops, *(t.layout.numel for t in node.outputs)]) if flops else float("inf")
    reads = [(t, int(min(_elements(t), most)) * t.dtype.itemsize) for t in node.inputs]
    return [*reads, *((t, _elements(t) * t.dtype.itemsize) for t in node.outputs)]


def _elements(tensor: Tensor) -> int:
    """Without those that broadcasting repeats."""
    total = 1
    for extent, stride in zip(tensor.layout.shape, tensor.layout.strides, strict=True):
        total *= extent if stride else 1
    return total
