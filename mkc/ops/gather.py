"""y[a, i, c] = Expr(x[a, index[a, i, c], c], ...): index_select, gather and indexing by tensors of integers."""

from collections.abc import Callable, Sequence
from math import prod

import numpy as np

from mkc.errors import UnsupportedError
from mkc.ir.builder import Builder
from mkc.ir.cost import cut
from mkc.ir.dtype import Array, DType
from mkc.ir.expr import Arg, Call, Const, Expr
from mkc.ir.graph import Node, Tensor
from mkc.ir.layout import Shape
from mkc.ir.target import Target
from mkc.ir.tiling import Split, TileMap, Tiling
from mkc.ops import Op
from mkc.ops._epilogue import along_output, finish, stored
from mkc.ops.elementwise import apply

WIDE = 64  # columns; narrower rows are never split


def reference(node: Node, ins: Sequence[Array]) -> tuple[Array, ...]:
    """Negative indices count from the end; those outside of the tensor are moved to its edge."""
    x, index, *extras = ins
    extent = x.shape[1]
    inside = np.clip(np.where(index < 0, index + extent, index), 0, extent - 1)
    picked = np.take_along_axis(x, np.broadcast_to(inside, (x.shape[0], index.shape[1], x.shape[2])), axis=1)
    return (finish(node, picked, extras),)


def tile(node: Node, target: Target) -> Tiling:
    """All three dimensions are shared out, rows before columns. Any of x's rows may be wanted by any task."""
    x, index, *extras = node.inputs
    y = node.output
    grid = cut(target, y.shape, 2.0 * y.nbytes, flops(node), (1, 1, WIDE if y.shape[2] > WIDE else 0))
    a, i, c = map(Split, range(3))
    picked = TileMap(x, (a, None, c), touched=min(1.0, y.shape[1] / x.shape[1]))
    imaps = (picked, TileMap(index, (a, i, c)), *along_output(extras, (a, i, c)))
    return Tiling(grid, imaps, (TileMap(y, (a, i, c)),))


def flops(node: Node) -> float:
    return float(node.output.layout.numel)


OP = Op("gather", "Gather", tile, reference, stored, flops, stores=True)


# ---- claims


def take(b: Builder, x: Tensor, dim: int, index: Tensor) -> Tensor:
    """x[..., index, ...]: the dimension gives way to those of the index."""
    _check(index)
    before, after = x.shape[:dim], x.shape[dim + 1 :]
    flat = b.reshape(x, (prod(before), x.shape[dim], prod(after)))
    count = index.layout.numel
    line = b.reshape(index, (1, count, 1))
    shape = (prod(before), count, prod(after))
    y = b.emit("gather", (flat, line.view(line.layout.expand(shape))), shape, x.dtype, epilogue=Arg(0))
    return b.reshape(y, (*before, *index.shape, *after))


def _check(index: Tensor) -> None:
    if index.dtype not in (DType.I64, DType.I32):
        raise UnsupportedError(f"an index of {index.dtype}; int64 and int32 are read")


def _embedding(b: Builder, weight: Tensor, ids: Tensor, *_: object, **__: object) -> Tensor:
    return take(b, weight, 0, ids)


def _index_select(b: Builder, x: Tensor, dim: int, index: Tensor) -> Tensor:
    if x.layout.rank == 0:
        raise UnsupportedError("index_select of a scalar")
    return b.reshape(take(b, x, dim % x.layout.rank, index), b.shape)


def _index(b: Builder, x: Tensor, indices: Sequence[Tensor | None]) -> Tensor:
    """Neighbouring index tensors become one into their merged dimensions."""
    used = [d for d, index in enumerate(indices) if index is not None]
    first, count = used[0], len(used)
    if used != list(range(first, first + count)):
        raise UnsupportedError("index tensors with a slice between them")
    named = [index for index in indices if index is not None]
    for index in named:
        _check(index)
    extents = x.shape[first : first + count]
    joint = named[0] if count == 1 else _joined(b, named, extents)
    merged = b.reshape(x, (*x.shape[:first], prod(extents), *x.shape[first + count :]))
    return take(b, merged, first, joint)


def _joined(b: Builder, indices: Sequence[Tensor], extents: Shape) -> Tensor:
    """The place that several indices name in row-major order, each brought into its extent first."""
    shape = np.broadcast_shapes(*(index.shape for index in indices))
    total: Expr = Const(0)
    for i, extent in enumerate(extents):
        wrapped = Call(
            "where", (Call("lt", (Arg(i), Const(0))), Call("add", (Arg(i), Const(extent))), Arg(i))
        )
        inside = Call("minimum", (Call("maximum", (wrapped, Const(0))), Const(extent - 1)))
        total = Call("add", (Call("mul", (total, Const(extent))), Call("to_int64", (inside,))))
    return apply(b, total, indices, shape, DType.I64)


def _gather(b: Builder, x: Tensor, dim: int, index: Tensor, **_: object) -> Tensor:
    """y[i, j, k] = x[i, index[i, j, k], k]; the index may be smaller than x in other dimensions."""
    _check(index)
    if x.layout.rank == 0:
        raise UnsupportedError("gather of a scalar")
    dim %= x.layout.rank
    layout = x.layout
    for d, extent in enumerate(index.shape):
        layout = layout if d == dim else layout.slice(d, 0, extent)
    before, after = prod(index.shape[:dim]), prod(index.shape[dim + 1 :])
    flat = b.reshape(x.view(layout), (before, x.shape[dim], after))
    places = b.reshape(index, (before, index.shape[dim], after))
    y = b.emit("gather", (flat, places), places.shape, x.dtype, epilogue=Arg(0))
    return b.reshape(y, index.shape)


CLAIMS: dict[str, Callable[..., Tensor]] = {
    "aten.embedding.default": _embedding,
    "aten.index_select.default": _index_select,
    "aten.index.Tensor": _index,
    "aten.gather.default": _gather,
}
