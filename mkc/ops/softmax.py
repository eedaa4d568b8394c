"""y[..., k] = Expr(exp(x[..., k] - max x) / sum exp(x - max x)), or its logarithm, along one dimension."""

from collections.abc import Callable, Sequence

import numpy as np

from mkc.ir.builder import Builder
from mkc.ir.dtype import Array, DType
from mkc.ir.expr import Arg, Call, Expr
from mkc.ir.graph import Node, Tensor
from mkc.ir.target import Target
from mkc.ir.tiling import Tiling
from mkc.ops import Op
from mkc.ops._epilogue import finish, stored
from mkc.ops._rows import few_rows, last, share_rows
from mkc.ops.elementwise import apply, cast
from mkc.ops.reduce import reduce


def reference(node: Node, ins: Sequence[Array]) -> tuple[Array, ...]:
    x, *extras = ins
    shifted = x - np.max(x, axis=-1, keepdims=True)
    total = np.sum(np.exp(shifted), axis=-1, keepdims=True)
    return (finish(node, shifted - np.log(total) if node["log"] else np.exp(shifted) / total, extras),)


def tile(node: Node, target: Target) -> Tiling:
    return share_rows(node, target, flops(node))


def flops(node: Node) -> float:
    return 30.0 * node.output.layout.numel  # an exponential is a dozen, and is taken twice


def arguments(node: Node) -> tuple[str, ...]:
    return (*stored(node), str(node["log"]).lower())


OP = Op("softmax", "Softmax", tile, reference, arguments, flops, stores=True)


# ---- claims


def softmax(b: Builder, x: Tensor, dim: int, log: bool = False) -> Tensor:
    """Softmax, or its logarithm, along `dim`, in a fresh contiguous tensor of the call's dtype."""
    if b.dtype is not DType.F32:
        x = cast(b, x, b.dtype)  # torch rounds to a narrower result type first
    if x.layout.rank == 0:
        return b.reshape(_along_rows(b, b.reshape(x, (1,)), 0, log), ())
    dim %= x.layout.rank
    across = x.layout.strides[-1] == 1 and dim != x.layout.rank - 1 and x.shape[-1] >= 16
    return (_across_columns if across else _along_rows)(b, x, dim, log)


def _along_rows(b: Builder, x: Tensor, dim: int, log: bool) -> Tensor:
    out = b.new(x.shape, b.dtype, "softmax")
    rows = few_rows(b, x.view(last(x.layout, (dim,))), 1)
    b.append("softmax", (rows,), (out.view(last(out.layout, (dim,))),), epilogue=Arg(0), log=log)
    return out


def _across_columns(b: Builder, x: Tensor, dim: int, log: bool) -> Tensor:
    """Rows that lie across memory's: two reductions that take many at once, and the rest is elementwise."""

    def along(t: Tensor) -> Tensor:
        return t.view(t.layout.expand(x.shape))

    shifted: Expr = Call("sub", (Arg(0), Arg(1)))
    top = along(reduce(b, "maximum", (x,), dim, DType.F32, keepdim=True))
    total = along(reduce(b, "sum", (x, top), dim, DType.F32, Call("exp", (shifted,)), keepdim=True))
    share = Call("div", (Call("exp", (shifted,)), Arg(2)))
    return apply(
        b, Call("sub", (shifted, Call("log", (Arg(2),)))) if log else share, (x, top, total), x.shape
    )


def _claim(log: bool) -> Callable[..., Tensor]:
    def claim(b: Builder, x: Tensor, dim: int, *_: object, **__: object) -> Tensor:
        return softmax(b, x, dim, log)

    return claim


CLAIMS = {
    "aten.softmax.int": _claim(log=False),
    "aten._softmax.default": _claim(log=False),
    "aten.log_softmax.int": _claim(log=True),
    "aten._log_softmax.default": _claim(log=True),
}
