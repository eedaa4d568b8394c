"""y[..., m, n] = Expr(sum_k x[..., m, k] w[..., n, k], ...): products of two activations, batched over broadcast dimensions."""

from collections.abc import Sequence
from math import prod

import numpy as np

from mkc.ir.builder import Builder
from mkc.ir.cost import cut
from mkc.ir.dtype import Array
from mkc.ir.expr import Arg
from mkc.ir.graph import Node, Tensor
from mkc.ir.layout import Shape
from mkc.ir.program import MAX_AXES
from mkc.ir.target import Target
from mkc.ir.tiling import Split, TileMap, Tiling
from mkc.ops import Op
from mkc.ops._epilogue import along_output, finish, stored
from mkc.ops._rows import check_axes, few_rows, merged, traffic
from mkc.ops.linear import product

MANY = 16  # rows and columns, from which on bringing the right operand into [..., k, n] order pays


def reference(node: Node, ins: Sequence[Array]) -> tuple[Array, ...]:
    x, w, *extras = ins
    return (finish(node, x @ np.swapaxes(w, -1, -2), extras),)


def tile(node: Node, target: Target) -> Tiling:
    """Batches are shared out first, then columns of the result, then its rows."""
    x, w, *extras, y = merged((*node.inputs, node.output), 0, node.output.layout.rank - 2)
    *batch, m, n = y.shape
    check_axes(node, len(batch) + 2)
    unit = 32 if w.layout.strides[-1] != 1 == w.layout.strides[-2] else 8
    grid = cut(target, (*batch, n, m), traffic(node), flops(node), (*[1] * len(batch), unit, 8))
    lead = tuple(Split(d) for d in range(len(batch)))
    columns, rows = Split(len(batch)), Split(len(batch) + 1)
    imaps = (TileMap(x, (*lead, rows, None)), TileMap(w, (*lead, columns, None)))
    place = (*lead, rows, columns)
    return Tiling(grid, (*imaps, *along_output(extras, place)), (TileMap(y, place),))


def flops(node: Node) -> float:
    return 2.0 * node.output.layout.numel * node.inputs[0].shape[-1]


OP = Op("matmul", "Matmul", tile, reference, stored, flops, stores=True)


# ---- claims


def matmul(b: Builder, x: Tensor, w: Tensor) -> Tensor:
    """torch.matmul: vectors, matrices and batches of them, x [..., m, k] times w [..., k, n]."""
    if x.layout.rank == 1:
        x = x.view(x.layout.unsqueeze(0))
    if w.layout.rank == 1:
        return b.reshape(product(b, x, w.view(w.layout.unsqueeze(0))), b.shape)
    turned = _turned(w)
    if prod(w.shape[:-2]) == 1:
        return b.reshape(product(b, x, b.reshape(turned, turned.shape[-2:])), b.shape)
    return b.reshape(_batched(b, x, turned), b.shape)


def _batched(b: Builder, x: Tensor, w: Tensor) -> Tensor:
    """x [..., m, k] times w [..., n, k], batch dimensions broadcast."""
    if w.layout.strides[-1] == 1 and min(x.shape[-2], w.shape[-2]) >= MANY:
        w = _turned(
            b.copy(_turned(w))
        )  # neighbouring columns side by side: the sums need no folding across lanes
    batch = np.broadcast_shapes(x.shape[:-2], w.shape[:-2])
    x, w = (_broadcast(b, t, batch) for t in (x, w))
    shape = (*batch, x.shape[-2], w.shape[-2])
    both = merged((x, w), 0, len(batch))[0].layout.rank
    if both > MAX_AXES:
        x, w = b.dense(x), b.dense(w)
    return b.emit("matmul", (x, w), shape, epilogue=Arg(0))


def _turned(t: Tensor) -> Tensor:
    """The last two dimensions change places."""
    return t.view(t.layout.permute((*range(t.layout.rank - 2), t.layout.rank - 1, t.layout.rank - 2)))


def _broadcast(b: Builder, t: Tensor, batch: Shape) -> Tensor:
    return few_rows(b, t.view(t.layout.expand((*batch, *t.shape[-2:]))), 2, MAX_AXES - 2)


CLAIMS = {"aten.matmul.default": matmul, "aten.bmm.default": matmul}
