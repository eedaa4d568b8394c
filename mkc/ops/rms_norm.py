"""y[..., k] = Expr(x[..., k] / sqrt(mean(x^2) + eps), ...): root mean square normalisation, a weight in the epilogue."""

from collections.abc import Sequence

import numpy as np

from mkc.errors import UnsupportedError
from mkc.ir.builder import Builder
from mkc.ir.dtype import Array, DType
from mkc.ir.expr import Arg, Call, Const, Expr
from mkc.ir.graph import Node, Tensor
from mkc.ops import Op
from mkc.ops._epilogue import epilogue, finish
from mkc.ops._norm import arguments, as_rows, flops, line, tile
from mkc.ops._rms_pattern import recognise

EPSILON = 2.0**-23  # float32's, whatever the input's type: torch takes that of the type it computes in


def reference(node: Node, ins: Sequence[Array]) -> tuple[Array, ...]:
    x, *extras = ins
    mean = np.mean(np.square(x), axis=-1, keepdims=True)
    return (finish(node, x / np.sqrt(mean + node["eps"]), extras),)


OP = Op("rms_norm", "RmsNorm", tile, reference, arguments, flops, stores=True)

ROUNDED = Call("to_bfloat16", (Arg(0),))
TO_FLOAT = Call("to_float32", (Arg(1),))


def gain(node: Node) -> tuple[Tensor, float] | None:
    """The gain [K] of a norm that stores bfloat16 and does nothing else, and what is added to it.

    It is a parameter that repeats along the rows.
    """
    if len(node.inputs) != 2 or node.output.dtype is not DType.BF16 or not node["eps"]:
        return None
    offset, row = offset_of(epilogue(node)), line(node.inputs[1])
    return (row, offset) if row and offset is not None else None


def offset_of(expr: Expr) -> float | None:
    """c, where the expression is the result times (operand 1 + c); on the way it may be rounded."""
    match expr:
        case Call("to_bfloat16", (Call("mul", (a, b)),)) | Call("mul", (a, b)):
            scales = [other for one, other in ((a, b), (b, a)) if one in (Arg(0), ROUNDED)]
            return _added(scales[0]) if scales else None
    return None


def _added(expr: Expr) -> float | None:
    """c, where the expression is operand 1 + c."""
    match expr:
        case Arg(1) | Call("to_float32", (Arg(1),)):
            return 0.0
        case Call("add", (one, Const(c))) | Call("add", (Const(c), one)) if one in (Arg(1), TO_FLOAT):
            return float(c)
    return None


# ---- claims


def _rms_norm(
    b: Builder, x: Tensor, shape: Sequence[int], weight: Tensor | None = None, eps: float | None = None
) -> Tensor:
    if not x.dtype.is_float:
        raise UnsupportedError(f"rms_norm of {x.dtype}")
    rows, extras = as_rows(b, x, shape, weight)
    epilogue: Expr = Call("mul", (Arg(0), Arg(1))) if extras else Arg(0)
    eps = EPSILON if eps is None else eps
    return b.reshape(
        b.emit("rms_norm", (rows, *extras), rows.shape, epilogue=epilogue, eps=float(eps)), b.shape
    )


CLAIMS = {"aten.rms_norm.default": _rms_norm}
PATTERN = recognise
