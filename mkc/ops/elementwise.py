"""Elementwise expressions over broadcast operands: arithmetic, activations, comparisons, casts, copies."""

from collections.abc import Callable, Sequence

import numpy as np

from mkc.errors import UnsupportedError
from mkc.ir.builder import Builder
from mkc.ir.cost import cut
from mkc.ir.dtype import Array, DType
from mkc.ir.expr import Arg, Call, Const, Expr, size
from mkc.ir.graph import Node, Tensor
from mkc.ir.layout import Shape, coalesce
from mkc.ir.target import Target
from mkc.ir.tiling import Split, TileMap, Tiling
from mkc.ops import Op
from mkc.ops._functions import FUNCTIONS, cpp, evaluate

MAX_RANK = 6
Scalar = float | int | bool
Operand = Tensor | Scalar


def reference(node: Node, ins: Sequence[Array]) -> tuple[Array, ...]:
    expr = node["expr"]
    assert isinstance(expr, Arg | Call | Const)
    shape = np.broadcast_shapes(*(a.shape for a in ins)) if ins else node.output.shape
    return (np.broadcast_to(evaluate(expr, list(ins)), shape),)


def tile(node: Node, target: Target) -> Tiling:
    """One axis for each dimension that is left when dimensions which lie alike in all tensors are merged."""
    tensors = (*node.inputs, *node.outputs)
    views = tuple(t.view(x) for t, x in zip(tensors, coalesce([t.layout for t in tensors]), strict=True))
    shape = views[-1].shape
    if len(shape) > MAX_RANK:
        raise UnsupportedError(f"{node.name} has {len(shape)} dimensions that do not merge; at most {MAX_RANK} can stay")
    units = [1] * (len(shape) - 1) + [64 // node.output.dtype.itemsize]
    nbytes = sum(min(t.nbytes, t.storage.nbytes) for t in tensors)
    grid = cut(target, shape, nbytes, flops(node), units)
    maps = tuple(TileMap(v, tuple(Split(d) for d in range(len(shape)))) for v in views)
    return Tiling(grid, maps[:-1], maps[-1:])


def flops(node: Node) -> float:
    expr = node["expr"]
    assert isinstance(expr, Arg | Call | Const)
    return node.output.layout.numel * max(1, size(expr))


def arguments(node: Node) -> tuple[str, ...]:
    expr = node["expr"]
    assert isinstance(expr, Arg | Call | Const)
    return (cpp(expr),)


OP = Op("elementwise", "Elementwise", tile, reference, arguments, flops)


# ---- claims


def apply(b: Builder, expr: Expr, operands: Sequence[Tensor], shape: Shape | None = None, dtype: DType | None = None) -> Tensor:
    """Emit `expr` over operands broadcast to the result's shape."""
    shape = b.shape if shape is None else shape
    wide = tuple(t.view(t.layout.expand(shape)) for t in operands)
    return b.emit("elementwise", wide, shape, dtype, expr=_narrowed(expr, dtype or b.dtype))


def call(b: Builder, fn: str, *operands: Operand) -> Tensor:
    """Emit one function of tensors and scalars."""
    tensors = [x for x in operands if isinstance(x, Tensor)]
    args = [Arg(tensors.index(x)) if isinstance(x, Tensor) else Const(x) for x in operands]
    return apply(b, Call(fn, tuple(args)), tensors)


def cast(b: Builder, x: Tensor, dtype: DType) -> Tensor:
    """The same values in another element type."""
    return x if x.dtype is dtype else apply(b, Call(f"to_{dtype}", (Arg(0),)), (x,), x.shape, dtype)


def _narrowed(expr: Expr, dtype: DType) -> Expr:
    """32-bit integers wrap where 64-bit arithmetic would not; floats are rounded once, when they are stored."""
    return Call("to_int32", (expr,)) if dtype is DType.I32 else expr


def _plain(fn: str) -> Callable[..., Tensor]:
    def claim(b: Builder, *operands: Operand) -> Tensor:
        return call(b, fn, *operands)

    return claim


def _comparison(fn: str) -> Callable[..., Tensor]:
    """A scalar is compared after rounding to the tensor's own type, as torch does."""

    def claim(b: Builder, x: Tensor, y: Operand) -> Tensor:
        if isinstance(y, float) and x.dtype.is_float:
            y = float(x.dtype.rounded(np.asarray(y, np.float32)))
        return call(b, fn, x, y)

    return claim


def _scaled(fn: str) -> Callable[..., Tensor]:
    def claim(b: Builder, x: Operand, y: Operand, alpha: Scalar = 1) -> Tensor:
        if alpha == 1:
            return _unchanged(b, fn, x, y) or call(b, fn, x, y)
        if isinstance(y, Tensor):
            tensors = [t for t in (x, y) if isinstance(t, Tensor)]
            left = Arg(0) if isinstance(x, Tensor) else Const(x)
            right = Call("mul", (Arg(len(tensors) - 1), Const(alpha)))
            return apply(b, Call(fn, (left, right)), tensors)
        return call(b, fn, x, y * alpha)

    return claim


def _unchanged(b: Builder, fn: str, x: Operand, y: Operand) -> Tensor | None:
    """x of integers, seen in the result's shape, when only zeros are added or taken away; or y, when zeros stand before it."""
    pairs = ((x, y), (y, x)) if fn == "add" else ((x, y),)
    kept = next((t for t, other in pairs if isinstance(t, Tensor) and t.dtype is b.dtype and _is_zero(b, other)), None)
    return None if kept is None or kept.dtype.is_float else kept.view(kept.layout.expand(b.shape))


def _is_zero(b: Builder, x: Operand) -> bool:
    if isinstance(x, Tensor):
        return x.storage.name in b.constants and not b.constants[x.storage.name].any()
    return x == 0


def _rsub(b: Builder, x: Tensor, y: Operand, alpha: Scalar = 1) -> Tensor:
    return _scaled("sub")(b, y, x, alpha)


def _divide(b: Builder, x: Operand, y: Operand, rounding_mode: str | None = None) -> Tensor:
    if rounding_mode is None:
        return call(b, "div", x, y)
    if rounding_mode == "floor" and b.dtype.is_float:
        tensors = [t for t in (x, y) if isinstance(t, Tensor)]
        args = tuple(Arg(tensors.index(t)) if isinstance(t, Tensor) else Const(t) for t in (x, y))
        return apply(b, Call("floor", (Call("div", args),)), tensors)
    if rounding_mode == "floor":
        return _by_a_number(b, "floor_div", x, y)
    raise UnsupportedError(f"division of {b.dtype} rounded by {rounding_mode!r}")


def _floor_divide(b: Builder, x: Operand, y: Operand) -> Tensor:
    return _divide(b, x, y, "floor")


def _remainder(b: Builder, x: Operand, y: Operand) -> Tensor:
    return _by_a_number(b, "mod", x, y)


def _by_a_number(b: Builder, fn: str, x: Operand, y: Operand) -> Tensor:
    """Of integers, by one that is known now: what a processor does when it divides by zero is nothing that torch does."""
    if b.dtype not in (DType.I64, DType.I32) or isinstance(y, Tensor) or y == 0:
        raise UnsupportedError(f"{fn} of {b.dtype} by anything but a number that is known and not zero")
    return call(b, fn, x, y)


def _pow(b: Builder, x: Operand, y: Operand) -> Tensor:
    if not b.dtype.is_float and y != 2:
        raise UnsupportedError("powers of integers other than the square")
    special = {2: "square", 0.5: "sqrt", -0.5: "rsqrt", -1: "reciprocal"}
    if isinstance(y, int | float) and y in special:
        return call(b, special[y], x)
    return call(b, "pow", x, y)


def _gelu(b: Builder, x: Tensor, approximate: str = "none") -> Tensor:
    return call(b, "gelu_tanh" if approximate == "tanh" else "gelu", x)


def _clamp(b: Builder, x: Tensor, lo: Operand | None = None, hi: Operand | None = None) -> Tensor:
    operands = [x]
    expr: Expr = Arg(0)
    for fn, bound in (("maximum", lo), ("minimum", hi)):
        if isinstance(bound, Tensor):
            expr = Call(fn, (expr, Arg(len(operands))))
            operands.append(bound)
        elif bound is not None:
            expr = Call(fn, (expr, Const(float(bound) if b.dtype.is_float else int(bound))))
    return apply(b, expr, operands)


def _where(b: Builder, condition: Tensor, x: Operand, y: Operand) -> Tensor:
    if b.dtype.is_float:
        x, y = (float(v) if isinstance(v, int | float) else v for v in (x, y))
    return call(b, "where", condition, x, y)


def _masked_fill(b: Builder, x: Tensor, mask: Tensor, value: Operand) -> Tensor:
    return _where(b, mask, value, x)


def _to_copy(b: Builder, x: Tensor, **_: object) -> Tensor:
    return cast(b, x, b.dtype)


def _same(b: Builder, x: Tensor, *_: object, **__: object) -> Tensor:
    return x


def _clone(b: Builder, x: Tensor, **_: object) -> Tensor:
    """Values never change once made, so a copy is only worth its bytes where it gathers scattered ones."""
    return b.dense(x)


def _copied(b: Builder, x: Tensor, source: Tensor, *_: object) -> Tensor:
    """What `x` holds after source was copied into it: source's values, in the shape and type of x."""
    return cast(b, source.view(source.layout.expand(x.shape)), x.dtype)


def _bitwise_not(b: Builder, x: Tensor) -> Tensor:
    if x.dtype is not DType.BOOL:
        raise UnsupportedError("bitwise_not of integers")
    return call(b, "logical_not", x)


def _dropout(b: Builder, x: Tensor, p: float, train: bool) -> Tensor:
    if train and p > 0:
        raise UnsupportedError("dropout that is switched on")
    return x


_UNARY = (
    "neg abs reciprocal sqrt rsqrt exp log sin cos tanh erf sigmoid silu relu floor ceil logical_not square"
).split()
_BINARY = {"mul": "mul", "maximum": "maximum", "minimum": "minimum", "logical_and": "logical_and",
           "logical_or": "logical_or", "bitwise_and": "bit_and", "bitwise_or": "bit_or", "bitwise_xor": "bit_xor",
           "__and__": "bit_and", "__or__": "bit_or"}  # fmt: skip

CLAIMS: dict[str, Callable[..., object]] = {
    **{f"aten.{fn}.default": _plain(fn) for fn in _UNARY},
    **{f"aten.{name}.{kind}": _plain(fn) for name, fn in _BINARY.items() for kind in ("default", "Tensor", "Scalar")},
    **{f"aten.{fn}.{kind}": _comparison(fn) for fn in ("eq", "ne", "lt", "le", "gt", "ge") for kind in ("Tensor", "Scalar")},
    **{f"aten.{fn}.{kind}": _scaled(fn) for fn in ("add", "sub") for kind in ("Tensor", "Scalar")},
    "aten.rsub.Tensor": _rsub,
    "aten.rsub.Scalar": _rsub,
    **{f"aten.div.{kind}": _divide for kind in ("Tensor", "Scalar", "Tensor_mode", "Scalar_mode")},
    **{f"aten.pow.{kind}": _pow for kind in ("Tensor_Scalar", "Tensor_Tensor", "Scalar")},
    "aten.floor_divide.default": _floor_divide,
    **{f"aten.remainder.{kind}": _remainder for kind in ("Scalar", "Tensor")},
    "aten.bitwise_not.default": _bitwise_not,
    "aten.gelu.default": _gelu,
    "aten.clamp.default": _clamp,
    "aten.clamp.Tensor": _clamp,
    "aten.clamp_min.default": _clamp,
    "aten.clamp_max.default": lambda b, x, hi: _clamp(b, x, None, hi),
    **{f"aten.where.{kind}": _where for kind in ("self", "ScalarSelf", "ScalarOther", "Scalar")},
    "aten.masked_fill.Scalar": _masked_fill,
    "aten.masked_fill.Tensor": _masked_fill,
    "aten._to_copy.default": _to_copy,
    "aten.to.dtype": _to_copy,
    "aten.type_as.default": lambda b, x, _: cast(b, x, b.dtype),
    "aten.clone.default": _clone,
    "aten.contiguous.default": _clone,
    "aten.copy.default": _copied,
    "aten.detach.default": _same,
    "aten.alias.default": _same,
    "aten.lift_fresh_copy.default": _same,
    "aten.dropout.default": _dropout,
}
assert set(_UNARY) <= set(FUNCTIONS)
