"""y[..., k] = Expr((x[..., k] - mean) / sqrt(var + eps), ...) along the last dimensions, weight and bias in the epilogue."""

from collections.abc import Sequence

import numpy as np

from mkc.ir.builder import Builder
from mkc.ir.dtype import Array, DType
from mkc.ir.expr import Arg, Call, Const, Expr
from mkc.ir.graph import Node, Tensor
from mkc.ops import Op
from mkc.ops._epilogue import epilogue, finish
from mkc.ops._norm import arguments, as_rows, flops, line, tile
from mkc.ops.reduce import mean, variance


def reference(node: Node, ins: Sequence[Array]) -> tuple[Array, ...]:
    x, *extras = ins
    centred = x - np.mean(x, axis=-1, keepdims=True)
    var = np.mean(np.square(centred), axis=-1, keepdims=True)
    return (finish(node, centred / np.sqrt(var + node["eps"]), extras),)


OP = Op("layer_norm", "LayerNorm", tile, reference, arguments, flops, stores=True)

SCALED = Call("mul", (Arg(0), Arg(1)))


def parameters(node: Node) -> tuple[Tensor, ...]:
    """The gain, or gain and shift, [K] each, of a norm that stores bfloat16 and does nothing else; else nothing."""
    if node.output.dtype is not DType.BF16 or epilogue(node) not in (SCALED, Call("add", (SCALED, Arg(2)))):
        return ()
    lines = tuple(row for t in node.inputs[1:] if (row := line(t)))
    return lines if len(lines) == len(node.inputs) - 1 else ()


# ---- claims


def _layer_norm(
    b: Builder,
    x: Tensor,
    shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    *_: object,
) -> Tensor:
    rows, extras = as_rows(b, x, shape, weight, bias)
    epilogue: Expr = Arg(0)
    if weight is not None:
        epilogue = Call("mul", (epilogue, Arg(1)))
    if bias is not None:
        epilogue = Call("add", (epilogue, Arg(len(extras))))
    y = b.emit("layer_norm", (rows, *extras), rows.shape, x.dtype, epilogue=epilogue, eps=float(eps))
    return b.reshape(y, x.shape)


def _native(
    b: Builder, x: Tensor, shape: Sequence[int], weight: Tensor | None, bias: Tensor | None, eps: float
) -> tuple[Tensor, ...]:
    """The result, and the statistics that a backward pass would want, each with extents of one for `shape`."""
    dims = range(x.layout.rank - len(shape), x.layout.rank)
    scale = variance(b, x, dims, 0, True, lambda v: Call("rsqrt", (Call("add", (v, Const(float(eps)))),)))
    return _layer_norm(b, x, shape, weight, bias, eps), mean(b, x, dims, x.dtype, keepdim=True), scale


CLAIMS = {"aten.layer_norm.default": _layer_norm, "aten.native_layer_norm.default": _native}
