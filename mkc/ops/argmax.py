"""y[..., p] = Expr(where the largest (or smallest) element of x[..., :] stands, ...): first in chunks, then among the chunks' best."""

from collections.abc import Callable, Sequence
from math import prod

import numpy as np

from mkc.ir.builder import Builder
from mkc.ir.cost import cut
from mkc.ir.dtype import Array, DType
from mkc.ir.expr import Arg
from mkc.ir.graph import Node, Tensor
from mkc.ir.layout import Shape
from mkc.ir.target import Target
from mkc.ir.tiling import Split, TileMap, Tiling
from mkc.ops import Op
from mkc.ops._epilogue import along_output, finish, stored
from mkc.ops._rows import by_rows, check_axes, few_rows, last, merged, traffic
from mkc.ops.reduce import extreme

LONG, FEW, CHUNK = 4096, 64, 512  # so long rows, when there are so few, are searched in chunks of so many
AHEAD = 8  # elements that a lane reads at once, as in team_first


def reference(node: Node, ins: Sequence[Array]) -> tuple[Array, ...]:
    """The first of equals; NaN before everything, as numpy has it too. Indices count from their chunk's begin.

    x [..., N], the candidates of its chunks [..., P] if `candidates`, then further operands [..., 1] of the epilogue.
    """
    known = 1 + node.integer("candidates")
    return (finish(node, _places(node, *ins[:known]), ins[known:]),)


def _places(node: Node, x: Array, candidates: Array | None = None) -> Array:
    best = np.argmax if node["largest"] else np.argmin
    chunk = node.integer("chunk")
    if candidates is None:
        parts = range(0, x.shape[-1], chunk)
        return np.stack([best(x[..., at : at + chunk], axis=-1) for at in parts], axis=-1)
    places = candidates + np.arange(candidates.shape[-1]) * chunk
    winner = best(np.take_along_axis(x, places, axis=-1), axis=-1)[..., None]
    return np.take_along_axis(places, winner, axis=-1)


def searched(node: Node) -> tuple[Tensor, ...]:
    """x, and the candidates of its chunks if there are any; what stands behind them is the epilogue's."""
    return node.inputs[: 1 + node.integer("candidates")]


def tile(node: Node, target: Target) -> Tiling:
    """Rows are shared out, and without candidates also the chunks of a row."""
    x, *others, y = merged((*node.inputs, node.output), 0, node.output.layout.rank - 1)
    rows, chunk = y.layout.rank - 1, node.integer("chunk")
    if node["candidates"]:
        check_axes(node, rows)
        grid = cut(target, y.shape[:rows], others[0].nbytes, flops(node))
        return Tiling(grid, tuple(by_rows(t, rows) for t in (x, *others)), (by_rows(y, rows),))
    check_axes(node, rows + 1)
    ahead = AHEAD * x.dtype.itemsize
    grid = cut(target, x.shape, traffic(node), flops(node), [*[1] * rows, chunk], ahead)
    along = tuple(Split(d) for d in range(rows))
    kept = (*along, Split(rows, chunk))
    return Tiling(grid, (TileMap(x, (*along, Split(rows))), *along_output(others, kept)), (TileMap(y, kept),))


def flops(node: Node) -> float:
    return 4.0 * searched(node)[-1].layout.numel


def arguments(node: Node) -> tuple[str, ...]:
    fold = "fold::maximum" if node["largest"] else "fold::minimum"
    return (*stored(node), fold, str(node.integer("chunk")), str(bool(node["candidates"])).lower())


OP = Op("argmax", "ArgMax", tile, reference, arguments, flops, stores=True)


# ---- claims


def argmax(b: Builder, x: Tensor, dim: int | None, keepdim: bool, largest: bool) -> Tensor:
    """int64 indices along `dim`, or into the flattened tensor."""
    shape = tuple(1 if dim is None or d == dim % x.layout.rank else n for d, n in enumerate(x.shape))
    if dim is None or x.layout.rank == 0:
        x, dim = b.reshape(x, (x.layout.numel,)), 0
    gone = dim % x.layout.rank
    rows = few_rows(b, x.view(last(x.layout, (gone,))), 1, 5)
    *lead, width = rows.shape
    kept = (*lead, 1)
    if width < LONG or prod(lead) > FEW:
        y = _search(b, (rows,), kept, largest, width)
    else:
        best = _search(b, (rows,), (*lead, -(-width // CHUNK)), largest, CHUNK)
        y = _search(b, (rows, best), kept, largest, CHUNK)
    return b.reshape(y, shape if keepdim else tuple(lead))


def _search(b: Builder, inputs: tuple[Tensor, ...], shape: Shape, largest: bool, chunk: int) -> Tensor:
    count = len(inputs) - 1
    return b.emit("argmax", inputs, shape, DType.I64, largest=largest, chunk=chunk, candidates=count, epilogue=Arg(0))


def _claim(largest: bool) -> Callable[..., Tensor]:
    def claim(b: Builder, x: Tensor, dim: int | None = None, keepdim: bool = False) -> Tensor:
        return argmax(b, x, dim, keepdim, largest)

    return claim


def _with_value(largest: bool) -> Callable[..., tuple[Tensor, Tensor]]:
    def claim(b: Builder, x: Tensor, dim: int, keepdim: bool = False) -> tuple[Tensor, Tensor]:
        value = extreme("maximum" if largest else "minimum")(b, x, dim, keepdim)
        return value, argmax(b, x, dim, keepdim, largest)

    return claim


CLAIMS: dict[str, Callable[..., object]] = {
    "aten.argmax.default": _claim(largest=True),
    "aten.argmin.default": _claim(largest=False),
    "aten.max.dim": _with_value(largest=True),
    "aten.min.dim": _with_value(largest=False),
}
