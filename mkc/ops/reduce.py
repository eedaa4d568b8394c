"""y[...] = Expr(fold of Prologue(x[..., k], ...) over the last dimensions k): sums, means, extremes, any and all."""

from collections.abc import Callable, Sequence
from math import inf, prod
from typing import Any

import numpy as np

from mkc.errors import UnsupportedError
from mkc.ir.builder import Builder
from mkc.ir.cost import cut
from mkc.ir.dtype import Array, DType
from mkc.ir.expr import Arg, Call, Const, Expr, size
from mkc.ir.graph import Node, Tensor
from mkc.ir.layout import Layout, Shape
from mkc.ir.program import MAX_AXES
from mkc.ir.target import Target
from mkc.ir.tiling import Tiling
from mkc.ops import Op
from mkc.ops._epilogue import finish, stored
from mkc.ops._functions import cpp, evaluate
from mkc.ops._rows import by_rows, check_axes, dims_of, few_rows, last, merged, traffic

LONG, FEW, PARTS = 1 << 15, 32, 128  # so long rows, when there are so few, are folded in so many parts first
FOLDS: dict[str, Callable[..., Any]] = {"sum": np.sum, "maximum": np.max, "minimum": np.min}


def reference(node: Node, ins: Sequence[Array]) -> tuple[Array, ...]:
    count = operands(node)
    values = np.broadcast_to(evaluate(prologue(node), list(ins[:count])), ins[0].shape)
    wide = values if values.dtype.kind == "f" else values.astype(np.int64)
    depth = tuple(range(_views(node)[-1].layout.rank, ins[0].ndim))
    return (finish(node, np.asarray(FOLDS[str(node["fold"])](wide, axis=depth)), ins[count:]),)


def _views(node: Node) -> tuple[Tensor, ...]:
    """Inputs and output: kept dimensions merge where they lie alike in all tensors, reduced ones where in the inputs."""
    count, rank = operands(node), node.output.layout.rank
    deep = merged(node.inputs[:count], rank, node.inputs[0].layout.rank)
    return merged((*deep, *node.inputs[count:], node.output), 0, rank)


def prologue(node: Node) -> Expr:
    """What is folded, of the node's first inputs."""
    expr = node["expr"]
    assert isinstance(expr, Arg | Call | Const)
    return expr


def operands(node: Node) -> int:
    """How many inputs the prologue reads; those behind them are the epilogue's."""
    return 1 + _highest(prologue(node))


def _highest(expr: Expr) -> int:
    match expr:
        case Arg(index):
            return index
        case Const():
            return 0
        case Call(_, args):
            return max(map(_highest, args))


def tile(node: Node, target: Target) -> Tiling:
    """Rows are shared out; where lanes go along them, in runs."""
    views = _views(node)
    rows = views[-1].layout.rank
    check_axes(node, rows)
    along_columns = views[0].layout.strides[rows - 1] == 1 != views[0].layout.strides[-1]
    units = [*[1] * (rows - 1), 32 if along_columns else 1]
    grid = cut(target, views[-1].shape, traffic(node), flops(node), units)
    maps = tuple(by_rows(v, rows) for v in views)
    return Tiling(grid, maps[:-1], maps[-1:])


def flops(node: Node) -> float:
    return float(node.inputs[0].layout.numel * (1 + size(prologue(node))))


def arguments(node: Node) -> tuple[str, ...]:
    return (*stored(node), f"fold::{node['fold']}", cpp(prologue(node)), str(operands(node)))


OP = Op("reduce", "Reduce", tile, reference, arguments, flops, stores=True)


# ---- claims

Dims = int | Sequence[int] | None
IDENTITY: Expr = Arg(0)


def reduce(
    b: Builder,
    fold: str,
    inputs: Sequence[Tensor],
    dims: Dims,
    dtype: DType,
    expr: Expr = IDENTITY,
    epilogue: Expr = IDENTITY,
    extras: Sequence[Tensor] = (),
    keepdim: bool = False,
) -> Tensor:
    """Fold `expr` over `dims` of equally shaped inputs, in a fresh contiguous tensor of `dtype`.

    `extras` are further operands of the epilogue, in the shape of the result without the reduced dimensions.
    """
    gone = dims_of(inputs[0], dims)
    depth = max(len(gone), 1)
    ins = [_placed(b, x, gone) for x in inputs]
    rank = ins[0].layout.rank - depth
    rows, deep = ins[0].shape[:rank], ins[0].shape[rank:]
    if prod(rows) <= FEW and prod(deep) >= LONG:
        wide = DType.F32 if dtype.is_float else DType.I64
        ins, expr = [_in_parts(b, fold, ins, rank, wide, expr)], IDENTITY
    y = b.emit("reduce", (*ins, *extras), rows, dtype, fold=fold, expr=expr, epilogue=epilogue)
    return b.reshape(y, tuple(1 if d in gone else n for d, n in enumerate(inputs[0].shape))) if keepdim else y


def _placed(b: Builder, x: Tensor, gone: Shape) -> Tensor:
    """Reduced dimensions last, at least one of them; one axis stays free for parts."""
    if not gone:
        return x.view(x.layout.unsqueeze(x.layout.rank))
    return few_rows(b, x.view(last(x.layout, gone)), len(gone), MAX_AXES - 1)


def _in_parts(b: Builder, fold: str, ins: Sequence[Tensor], rank: int, dtype: DType, expr: Expr) -> Tensor:
    """Fold parts of every row on their own, so that many workers can: [rows..., parts]."""
    deep = merged(ins, rank, ins[0].layout.rank)
    dim = max(range(rank, deep[0].layout.rank), key=lambda d: deep[0].shape[d])
    extent = deep[0].shape[dim]
    parts = min(PARTS, extent)
    rest = extent % parts
    out = b.new((*deep[0].shape[:rank], parts + (rest > 0)), dtype, "parts")
    even = tuple(x.view(_split(x.layout, dim, rank, parts, extent // parts)) for x in deep)
    attrs = {"fold": fold, "expr": expr, "epilogue": IDENTITY}
    b.append("reduce", even, (out.view(out.layout.slice(rank, 0, parts)),), **attrs)
    if rest:
        tail = tuple(x.view(x.layout.slice(dim, extent - rest, extent)) for x in deep)
        b.append("reduce", tail, (out.view(out.layout.select(rank, parts)),), **attrs)
    return out


def _split(layout: Layout, dim: int, to: int, parts: int, each: int) -> Layout:
    """The first parts * each elements along `dim` as two dimensions, that of the parts moved to place `to`."""
    step = layout.strides[dim]
    shape = (*layout.shape[:to], parts, *layout.shape[to:dim], each, *layout.shape[dim + 1 :])
    strides = (*layout.strides[:to], each * step, *layout.strides[to:dim], step, *layout.strides[dim + 1 :])
    return Layout(shape, strides, layout.offset)


def _count(x: Tensor, dims: Dims) -> int:
    return prod(x.shape[d] for d in dims_of(x, dims))


def _as(x: Tensor, dtype: DType) -> Expr:
    """The element as the result's type has it: torch casts before it sums, and only widening changes nothing."""
    widens = dtype is DType.F32 if x.dtype.is_float else not dtype.is_float
    return IDENTITY if x.dtype is dtype or widens else Call(f"to_{dtype}", (IDENTITY,))


def _sum(b: Builder, x: Tensor, dims: Dims = None, keepdim: bool = False, **_: object) -> Tensor:
    return reduce(b, "sum", (x,), dims, b.dtype, _as(x, b.dtype), keepdim=keepdim)


def mean(b: Builder, x: Tensor, dims: Dims, dtype: DType, keepdim: bool = False) -> Tensor:
    """The arithmetic mean along `dims`, accumulated in float32."""
    each = Call("div", (Arg(0), Const(float(_count(x, dims)))))
    return reduce(b, "sum", (x,), dims, dtype, _as(x, dtype), each, keepdim=keepdim)


def variance(
    b: Builder, x: Tensor, dims: Dims, correction: float, keepdim: bool, then: Callable[[Expr], Expr]
) -> Tensor:
    """`then` of the variance along `dims`, in two passes: the mean, and the squares of what is left."""
    average = mean(b, x, dims, DType.F32, keepdim=True)
    square = Call("square", (Call("sub", (Arg(0), Arg(1))),))
    count = Const(float(max(0, _count(x, dims) - correction)))
    around = average.view(average.layout.expand(x.shape))
    epilogue = then(Call("div", (Arg(0), count)))
    return reduce(b, "sum", (x, around), dims, x.dtype, square, epilogue, keepdim=keepdim)


def _mean(b: Builder, x: Tensor, dims: Dims = None, keepdim: bool = False, **_: object) -> Tensor:
    return mean(b, x, dims, b.dtype, keepdim)


def extreme(fold: str) -> Callable[..., Tensor]:
    """The largest or smallest element along some dimensions; NaN when there is one."""

    def claim(b: Builder, x: Tensor, dims: Dims = None, keepdim: bool = False) -> Tensor:
        return reduce(b, fold, (x,), dims, x.dtype, keepdim=keepdim)

    return claim


def _holds(fold: str) -> Callable[..., Tensor]:
    """any is the maximum of truth values, all is the minimum."""

    def claim(b: Builder, x: Tensor, dims: Dims = None, keepdim: bool = False) -> Tensor:
        return reduce(b, fold, (x,), dims, b.dtype, Call("to_bool", (Arg(0),)), keepdim=keepdim)

    return claim


def _spread(then: Callable[[Expr], Expr], with_mean: bool = False) -> dict[str, Callable[..., object]]:
    """The three signatures of var, std and their mean-giving variants."""

    def corrected(
        b: Builder, x: Tensor, dims: Dims = None, *, correction: float | None = None, keepdim: bool = False
    ) -> object:
        spread = variance(b, x, dims, 1 if correction is None else correction, keepdim, then)
        return (spread, mean(b, x, dims, x.dtype, keepdim)) if with_mean else spread

    def along(b: Builder, x: Tensor, dims: Dims, unbiased: bool = True, keepdim: bool = False) -> object:
        return corrected(b, x, dims, correction=unbiased, keepdim=keepdim)

    def whole(b: Builder, x: Tensor, unbiased: bool = True) -> object:
        return corrected(b, x, correction=unbiased)

    return {"default": whole, "dim": along, "correction": corrected}


def _norm(
    b: Builder, x: Tensor, order: float | None = 2, dims: Dims = None, keepdim: bool = False, **_: object
) -> Tensor:
    """(sum |x|^p)^(1/p), and the extremes that this tends to."""
    p = 2.0 if order is None else float(order)
    magnitude: Expr = Call("abs", (Arg(0),))
    if abs(p) == inf:
        return reduce(b, "maximum" if p > 0 else "minimum", (x,), dims, b.dtype, magnitude, keepdim=keepdim)
    if p == 0:
        raise UnsupportedError("the norm of order 0")
    if p == 1:
        return reduce(b, "sum", (x,), dims, b.dtype, magnitude, keepdim=keepdim)
    if p == 2:
        power, root = Call("square", (Arg(0),)), Call("sqrt", (Arg(0),))
    else:
        power, root = Call("pow", (magnitude, Const(p))), Call("pow", (Arg(0), Const(1 / p)))
    return reduce(b, "sum", (x,), dims, b.dtype, power, root, keepdim=keepdim)


def _logsumexp(b: Builder, x: Tensor, dims: Dims, keepdim: bool = False) -> Tensor:
    """log sum exp(x - top) + top, where an infinite top is left out of both."""
    infinite = Call("eq", (Call("abs", (Arg(0),)), Const(inf)))
    finite = Call("where", (infinite, Const(0.0), Arg(0)))
    top = reduce(b, "maximum", (x,), dims, DType.F32, epilogue=finite, keepdim=True)
    shifted = Call("exp", (Call("sub", (Arg(0), Arg(1))),))
    around = top.view(top.layout.expand(x.shape))
    kept = tuple(n for d, n in enumerate(x.shape) if d not in dims_of(x, dims))
    offset = Call("add", (Call("log", (Arg(0),)), Arg(1)))
    return reduce(b, "sum", (x, around), dims, b.dtype, shifted, offset, (b.reshape(top, kept),), keepdim)


CLAIMS: dict[str, Callable[..., object]] = {
    **{f"aten.sum.{kind}": _sum for kind in ("default", "dim_IntList")},
    **{f"aten.mean.{kind}": _mean for kind in ("default", "dim")},
    **{f"aten.{name}.default": extreme("maximum") for name in ("amax", "max")},
    **{f"aten.{name}.default": extreme("minimum") for name in ("amin", "min")},
    **{f"aten.any.{kind}": _holds("maximum") for kind in ("default", "dim", "dims")},
    **{f"aten.all.{kind}": _holds("minimum") for kind in ("default", "dim", "dims")},
    **{f"aten.var.{kind}": claim for kind, claim in _spread(lambda v: v).items()},
    **{f"aten.std.{kind}": claim for kind, claim in _spread(lambda v: Call("sqrt", (v,))).items()},
    **{f"aten.var_mean.{kind}": claim for kind, claim in _spread(lambda v: v, with_mean=True).items()},
    "aten.linalg_vector_norm.default": _norm,
    "aten.norm.Scalar": _norm,
    "aten.norm.ScalarOpt_dim": _norm,
    "aten.logsumexp.default": _logsumexp,
}
