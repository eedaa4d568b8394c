"""Graph -> Graph. Products of the same row become one: a gate and what it gates, and neighbours that nothing tells apart."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace

from mkc.ir.dtype import DType
from mkc.ir.expr import Arg, Expr, substitute
from mkc.ir.graph import Graph, Kind, Node, Storage, Tensor, scratch
from mkc.ir.layout import Layout
from mkc.ops._epilogue import epilogue
from mkc.ops.stream_linear import extras, first_weight, weights
from mkc.passes._stream_words import WORD
from mkc.passes._uses import Uses, rewritten
from mkc.passes.fuse import MAX_OPERANDS

MOST_PIECES = 8  # of an operand


def gates(graph: Graph) -> Graph:
    """Two products of the same row, one of which only the other's epilogue reads, become one."""
    uses = Uses(graph)
    changes: dict[int, Node | None] = {}
    for number, node in enumerate(graph.nodes):
        gate = _gate(uses, number) if _is_single(node) else None
        if gate is not None and gate not in changes:
            changes |= {gate: None, number: _gated(graph.nodes[gate], node)}
    return rewritten(graph, changes)


def _is_single(node: Node) -> bool:
    return node.op == "stream_linear" and node["weights"] == 1


def _gate(uses: Uses, number: int) -> int | None:
    node = uses.nodes[number]
    for extra in extras(node):
        gate = uses.maker(extra, "stream_linear")
        if gate is not None and _is_single(uses.nodes[gate]) and _gates_only(uses, gate, number, extra):
            return gate
    return None


def _gates_only(uses: Uses, gate: int, number: int, extra: Tensor) -> bool:
    first, then = uses.nodes[gate], uses.nodes[number]
    alike = _row(first) == _row(then) and extra.layout.is_contiguous and extra.layout.numel == first.output.layout.numel
    alike = alike and extra.layout.numel % WORD == 0
    once = sum(t.storage == extra.storage for t in then.inputs) == 1 and uses.is_private(extra, number)
    few = len(first.inputs) + len(then.inputs) <= MAX_OPERANDS
    return alike and once and few and uses.are_still(first.inputs, gate, number)


def _row(node: Node) -> tuple[object, ...]:
    """What a stream multiplies its weights with."""
    return *(node[key] for key in ("eps", "offset", "centred", "merge")), *node.inputs[: first_weight(node)]


def _gated(gate: Node, node: Node) -> Node:
    mine = [t for t in extras(node) if t.storage != gate.output.storage]
    held = extras(gate)
    opened = substitute(epilogue(gate), lambda arg: Arg(arg.index + 1) if arg.index else arg)

    def operand(arg: Arg) -> Expr:
        if not arg.index:
            return Arg(1)
        extra = extras(node)[arg.index - 1]
        return Arg(2 + len(held) + mine.index(extra)) if extra in mine else opened

    rows = node.inputs[: first_weight(node)]
    inputs = (*rows, *weights(gate), *weights(node), *held, *mine)
    return replace(node.with_attrs(weights=2, gated=True, epilogue=substitute(epilogue(node), operand)), inputs=inputs)


# ---- neighbours


def neighbours(graph: Graph) -> Graph:
    """Products of the same row that the same is done to become one, in the place of the first; each keeps its columns."""
    uses = Uses(graph)
    groups: dict[tuple[object, ...], list[int]] = defaultdict(list)
    for number, node in enumerate(graph.nodes):
        if _is_single(node) and _may_join(uses, node):
            groups[*_row(node), epilogue(node), len(extras(node))].append(number)
    changes: dict[int, Node | None] = {}
    moved: dict[Storage, tuple[Storage, int, int, int]] = {}
    for group in (g for numbers in groups.values() for g in _unbroken(uses, numbers) if len(g) > 1):
        nodes = [graph.nodes[number] for number in group]
        changes |= dict.fromkeys(group)
        changes[group[0]] = joined = _joined(nodes)
        at = 0
        for node in nodes:
            moved[node.output.storage] = joined.output.storage, at, node.output.shape[1], joined.output.shape[1]
            at += node.output.shape[1]

    def view(t: Tensor) -> Tensor:
        if t.storage not in moved:
            return t
        storage, at, width, total = moved[t.storage]
        layout = widened(t.layout, width, total)
        assert layout is not None  # or it would not have joined
        return Tensor(t.dtype, replace(layout, offset=layout.offset + at), storage)

    return rewritten(graph, changes, view)


def _may_join(uses: Uses, node: Node) -> bool:
    """Nothing further is done to the result, or one parameter added, or the like."""
    out, others = node.output, extras(node)
    plain = len(others) < 2 and all(t.storage.kind is Kind.PARAM for t in others) and out.shape[1] % WORD == 0
    scratch = uses.maker(out, node.op) is not None and out.dtype is DType.BF16 and out.storage not in uses.returned
    return plain and scratch and (out.shape[0] == 1 or _has_rows_of_its_own(uses, out))


def _has_rows_of_its_own(uses: Uses, out: Tensor) -> bool:
    """Nobody's view of the rows has a dimension that runs on from one to the next."""
    nodes = [uses.nodes[number] for number in (*uses.readers[out.storage], *uses.writers[out.storage])]
    seen = (t for n in nodes for t in (*n.inputs, *n.outputs) if t.storage == out.storage)
    return all(widened(t.layout, out.shape[1], out.shape[1]) for t in seen)


def widened(layout: Layout, width: int, total: int) -> Layout | None:
    """The same elements when rows of `width` stand `total` apart; None where a dimension runs on from row to row."""
    steps = [(n, s) for n, s in zip(layout.shape, layout.strides, strict=True) if n > 1]
    within = sum(s * (n - 1) for n, s in steps if s < width) + layout.offset % width
    if within >= width or any(s % width for _, s in steps if s >= width):
        return None
    strides = tuple(s // width * total if n > 1 and s >= width else s for n, s in zip(layout.shape, layout.strides, strict=True))
    return Layout(layout.shape, strides, layout.offset // width * total + layout.offset % width)


def _unbroken(uses: Uses, numbers: Sequence[int]) -> list[list[int]]:
    """The numbers in runs during which nobody writes the row, and of which a task may have all operands."""
    runs: list[list[int]] = []
    for number in numbers:
        few = runs and (not extras(uses.nodes[number]) or len(runs[-1]) < MOST_PIECES)
        if few and uses.are_still(uses.nodes[number].inputs, runs[-1][0], number):
            runs[-1].append(number)
        else:
            runs.append([number])
    return runs


def _joined(nodes: Sequence[Node]) -> Node:
    first = nodes[0]
    rows, total = first.output.shape[0], sum(node.output.shape[1] for node in nodes)
    out = scratch(f"{first.output.storage.name}_joined", (rows, total), DType.BF16)
    pieces = (piece for node in nodes for piece in extras(node))
    inputs = (*first.inputs[: first_weight(first)], *(w for node in nodes for w in weights(node)), *pieces)
    return replace(first.with_attrs(weights=len(nodes)), inputs=inputs, outputs=(out,))
