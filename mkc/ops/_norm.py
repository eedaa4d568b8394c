"""What layer_norm and rms_norm share: rows to normalise, further operands laid along them, tasks of whole rows."""

from collections.abc import Sequence
from math import prod

from mkc.ir.builder import Builder
from mkc.ir.dtype import DType
from mkc.ir.expr import Const
from mkc.ir.graph import Kind, Node, Tensor
from mkc.ir.layout import Layout
from mkc.ir.target import Target
from mkc.ir.tiling import Tiling
from mkc.ops._epilogue import stored
from mkc.ops._functions import cpp
from mkc.ops._rows import few_rows, share_rows

VECTOR = 8  # elements that are read at once


def tile(node: Node, target: Target) -> Tiling:
    return share_rows(node, target, flops(node))


def flops(node: Node) -> float:
    return 8.0 * node.output.layout.numel


def arguments(node: Node) -> tuple[str, ...]:
    return (*stored(node), cpp(Const(node.number("eps"))))


def as_rows(
    b: Builder, x: Tensor, shape: Sequence[int], *parameters: Tensor | None
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """x [..., *shape] as [..., K], and the parameters there are, of `shape`, repeated along its rows."""
    lead = x.layout.rank - len(shape)
    rows = few_rows(b, b.reshape(x, (*x.shape[:lead], prod(shape))), 1)
    flat = (b.reshape(p, (prod(shape),)) for p in parameters if p is not None)
    return rows, tuple(p.view(p.layout.expand(rows.shape)) for p in flat)


def line(parameter: Tensor) -> Tensor | None:
    """[K] of a bfloat16 parameter that repeats along the rows, where vectors can be read."""
    *lead, last = zip(parameter.shape, parameter.layout.strides, strict=True)
    row = last[1] == 1 and all(n == 1 or step == 0 for n, step in lead) and parameter.layout.offset % VECTOR == 0
    plain = row and parameter.storage.kind is Kind.PARAM and parameter.dtype is DType.BF16
    return parameter.view(Layout(last[:1], (1,), parameter.layout.offset)) if plain else None
