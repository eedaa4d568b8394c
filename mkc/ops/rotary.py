"""x cos + rotated(x) sin, where rotated swaps the halves of a row and negates the first: rotary position embedding."""

from collections import defaultdict
from collections.abc import Sequence, Set
from dataclasses import dataclass, replace
from itertools import permutations

import numpy as np

from mkc.ir.cost import cut
from mkc.ir.dtype import Array
from mkc.ir.expr import Arg, Call, Expr
from mkc.ir.graph import Graph, Kind, Node, Storage, Tensor
from mkc.ir.layout import Layout, coalesce
from mkc.ir.target import Target
from mkc.ir.tiling import Split, TileMap, Tiling
from mkc.ops import Op
from mkc.ops._epilogue import finish, stored


def reference(node: Node, ins: Sequence[Array]) -> tuple[Array, ...]:
    """x, cos and sin, all of one shape [..., D] with D even, then an epilogue."""
    x, cos, sin, *extras = ins
    first, second = np.split(x, 2, axis=-1)
    return (finish(node, x * cos + np.concatenate([-second, first], -1) * sin, extras),)


def tile(node: Node, target: Target) -> Tiling:
    """Rows stay whole; the dimensions before them are merged where all tensors allow it, and shared out."""
    tensors = (*node.inputs, *node.outputs)
    lead = coalesce([_without_last(t.layout) for t in tensors])
    views = tuple(t.view(_with_last(x, t.layout)) for t, x in zip(tensors, lead, strict=True))
    grid = cut(target, lead[0].shape, 2 * node.output.nbytes, flops(node))
    maps = tuple(TileMap(v, (*(Split(d) for d in range(len(grid))), None)) for v in views)
    return Tiling(grid, maps[:-1], maps[-1:])


def _without_last(layout: Layout) -> Layout:
    return replace(layout, shape=layout.shape[:-1], strides=layout.strides[:-1])


def _with_last(lead: Layout, layout: Layout) -> Layout:
    return replace(lead, shape=(*lead.shape, layout.shape[-1]), strides=(*lead.strides, layout.strides[-1]))


def flops(node: Node) -> float:
    return 3.0 * node.output.layout.numel


OP = Op("rotary", "Rotary", tile, reference, stored, flops, stores=True)


# ---- the pattern

PRODUCT = Call("mul", (Arg(0), Arg(1)))
SUM = Call("add", (Arg(0), Arg(1)))
NEGATION = Call("neg", (Arg(0),))
TO_FLOAT = Call("to_float32", (Arg(0),))


def rewrite(graph: Graph) -> Graph:
    """Graph -> Graph. What models spell as add(mul(x, cos), mul(cat(neg(x[half:]), x[:half]), sin)) becomes one rotary.

    It computes in float32 and rounds once, where the model's own spelling rounds at every step.
    """
    program = _Program(graph)
    found = {number: match for number in range(len(graph.nodes)) if (match := _match(program, number))}
    gone = {number for match in found.values() for number in match.absorbed}
    nodes = (found[i].rotary if i in found else node for i, node in enumerate(graph.nodes) if i not in gone)
    return replace(graph, nodes=tuple(nodes))


PATTERN = rewrite


@dataclass(frozen=True, slots=True)
class _Match:
    rotary: Node  # in the place of the final sum
    absorbed: frozenset[int]  # the nodes that it does the work of


def _match(program: "_Program", number: int) -> _Match | None:
    total = program.nodes[number]
    if not _computes(total, SUM):
        return None
    for straight, turned in permutations(total.inputs):
        left, right = program.maker(straight, {number}), program.maker(turned, {number})
        if left is None or right is None:
            continue
        if not _computes(program.nodes[left], PRODUCT) or not _computes(program.nodes[right], PRODUCT):
            continue
        for x, cos in permutations(program.nodes[left].inputs):
            for rotated, sin in permutations(program.nodes[right].inputs):
                turning = _turning(program, rotated, right, x)
                if turning:
                    return _accepted(program, number, x, cos, sin, turning | {left, right})
    return None


def _accepted(
    program: "_Program", number: int, x: Tensor, cos: Tensor, sin: Tensor, absorbed: frozenset[int]
) -> _Match | None:
    """The match, unless something that it reads is written while it was being spelled out."""
    total = program.nodes[number]
    cast = program.maker(x, absorbed)
    if cast is not None and program.nodes[cast]["expr"] == TO_FLOAT:
        x, absorbed = program.nodes[cast].inputs[0], absorbed | {cast}
    rotary = Node(total.name, "rotary", (x, cos, sin), total.outputs, (("epilogue", Arg(0)),), total.path)
    floats = all(t.dtype.is_float for t in (*rotary.inputs, *rotary.outputs))
    written = {n for t in rotary.inputs for n in program.writers[t.storage]}
    return _Match(rotary, absorbed) if floats and not written & set(range(min(absorbed), number)) else None


def _turning(program: "_Program", rotated: Tensor, reader: int, x: Tensor) -> frozenset[int]:
    """The nodes that make `rotated` of x for `reader` alone: -x[half:] and x[:half], side by side. Else none."""
    last, half = x.layout.rank - 1, x.shape[-1] // 2
    low, high = (rotated.view(rotated.layout.slice(last, at, at + half)) for at in (0, half))
    first, second = (x.view(x.layout.slice(last, at, at + half)) for at in (0, half))
    negated = _making(program, low, reader, NEGATION, second)
    kept = _making(program, high, reader, Arg(0), first)
    whole = x.shape[-1] == 2 * half and set(program.writers[rotated.storage]) <= negated | kept
    return negated | kept if negated and kept and whole else frozenset()


def _making(program: "_Program", part: Tensor, reader: int, expr: Expr, source: Tensor) -> frozenset[int]:
    """The node that writes `expr` of `source` into `part`, or the two that compute it and then copy it there."""
    for number in program.makers(part, {reader}):
        node = program.nodes[number]
        inner = program.maker(node.inputs[0], {number}) if node["expr"] == Arg(0) else None
        origin = node if inner is None else program.nodes[inner]
        if _same(node.output, part) and origin["expr"] == expr and _same(origin.inputs[0], source):
            return frozenset({number} if inner is None else {number, inner})
    return frozenset()


class _Program:
    """Who writes and who reads each storage, by number."""

    def __init__(self, graph: Graph) -> None:
        self.nodes = graph.nodes
        self.writers: dict[Storage, list[int]] = defaultdict(list)
        self.readers: dict[Storage, set[int]] = defaultdict(set)
        for number, node in enumerate(graph.nodes):
            for tensor in node.inputs:
                self.readers[tensor.storage].add(number)
            for tensor in node.outputs:
                self.writers[tensor.storage].append(number)

    def makers(self, tensor: Tensor, readers: Set[int]) -> list[int]:
        """The elementwise nodes that write the tensor's memory, when only `readers` look at it."""
        storage = tensor.storage
        private = storage.kind is Kind.ARENA and self.readers[storage] <= readers
        found = [n for n in self.writers[storage] if self.nodes[n].op == "elementwise"] if private else []
        return found if len(found) == len(self.writers[storage]) else []

    def maker(self, tensor: Tensor, readers: Set[int]) -> int | None:
        """The one node that makes the tensor, all of it."""
        makers = self.makers(tensor, readers)
        return makers[0] if len(makers) == 1 and _same(self.nodes[makers[0]].output, tensor) else None


def _computes(node: Node, expr: Expr) -> bool:
    return node.op == "elementwise" and node["expr"] == expr


def _same(a: Tensor, b: Tensor) -> bool:
    """The same elements in the same shape; the stride of a single element means nothing."""
    return a.shape == b.shape and _solid(a) == _solid(b)


def _solid(tensor: Tensor) -> tuple[object, ...]:
    steps = [s for n, s in zip(tensor.shape, tensor.layout.strides, strict=True) if n != 1]
    return tensor.storage, tensor.dtype, tensor.layout.offset, *steps
