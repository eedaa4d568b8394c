"""y[..., k] = Expr(x[..., k] / sqrt(mean(x^2) + eps), ...): root mean square normalisation, a weight in the epilogue."""

from collections.abc import Sequence

import numpy as np

from mkc.errors import UnsupportedError
from mkc.ir.builder import Builder
from mkc.ir.dtype import Array, DType
from mkc.ir.expr import Arg, Call, Expr
from mkc.ir.graph import Kind, Node, Tensor
from mkc.ir.layout import Layout
from mkc.ops import Op
from mkc.ops._epilogue import epilogue, finish
from mkc.ops._norm import arguments, as_rows, flops, tile
from mkc.ops._rms_pattern import recognise

EPSILON = 2.0**-23  # float32's, whatever the input's type: torch takes that of the type it computes in


def reference(node: Node, ins: Sequence[Array]) -> tuple[Array, ...]:
    x, *extras = ins
    mean = np.mean(np.square(x), axis=-1, keepdims=True)
    return (finish(node, x / np.sqrt(mean + node["eps"]), extras),)


OP = Op("rms_norm", "RmsNorm", tile, reference, arguments, flops, stores=True)

ROUNDED = Call("to_bfloat16", (Arg(0),))


def gain(node: Node) -> Tensor | None:
    """The gain [K] of a norm that stores bfloat16 and does nothing else: a parameter that repeats along the rows."""
    if len(node.inputs) != 2 or node.output.dtype is not DType.BF16 or not node["eps"] or not _scales(epilogue(node)):
        return None
    factor = node.inputs[1]
    *lead, last = zip(factor.shape, factor.layout.strides, strict=True)
    row = last[1] == 1 and all(n == 1 or step == 0 for n, step in lead)
    plain = row and factor.storage.kind is Kind.PARAM and factor.dtype is DType.BF16
    return factor.view(Layout(last[:1], (1,), factor.layout.offset)) if plain else None


def _scales(expr: Expr) -> bool:
    """The result times operand 1; on the way it may be rounded."""
    match expr:
        case Call("mul", (a, b)) | Call("to_bfloat16", (Call("mul", (a, b)),)):
            return Arg(1) in (a, b) and bool({a, b} & {Arg(0), ROUNDED})
    return False


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
