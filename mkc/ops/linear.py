"""y[m, n] = sum_k x[m, k] w[n, k], then an epilogue: what nn.Linear, addmm and a matmul by a matrix become."""

from collections.abc import Sequence

from mkc.ir.builder import Builder
from mkc.ir.cost import cut
from mkc.ir.dtype import Array
from mkc.ir.expr import Arg, Call, Const, Expr, substitute
from mkc.ir.graph import Node, Tensor
from mkc.ir.target import Target
from mkc.ir.tiling import Split, TileMap, Tiling
from mkc.ops import Op
from mkc.ops._epilogue import along_output, finish, stored
from mkc.ops.elementwise import apply


def reference(node: Node, ins: Sequence[Array]) -> tuple[Array, ...]:
    x, w, *extras = ins
    return (finish(node, x @ w.T, extras),)


def tile(node: Node, target: Target) -> Tiling:
    """Rows of the weight are shared out; rows of the input too when there are many."""
    x, w, *extras = node.inputs
    m, n = x.shape[0], w.shape[0]
    nbytes = w.layout.numel * w.dtype.itemsize
    n_axis, m_axis = cut(target, (n, m), nbytes, flops(node), units=(max(1, 64 // node.output.dtype.itemsize // 2), 8))
    rows, columns = Split(1), Split(0)
    imaps = (TileMap(x, (rows, None)), TileMap(w, (columns, None)), *along_output(extras, (rows, columns)))
    return Tiling((n_axis, m_axis), imaps, (TileMap(node.output, (rows, columns)),))


def flops(node: Node) -> float:
    x, w, *_ = node.inputs
    return 2.0 * x.shape[0] * w.shape[0] * w.shape[1]


OP = Op("linear", "Linear", tile, reference, stored, flops, stores=True)


# ---- claims


def product(b: Builder, x: Tensor, w: Tensor, bias: Tensor | None = None, epilogue: Expr | None = None) -> Tensor:
    """x [..., k] times w [n, k] transposed, plus bias [n]."""
    *lead, k = x.shape
    if k == 1:
        return _outer(b, x, w, bias, epilogue)
    flat = b.reshape(x, (x.layout.numel // k, k))
    shape = (flat.shape[0], w.shape[0])
    extras = () if bias is None else (bias.view(bias.layout.expand(shape)),)
    plain: Expr = Arg(0) if bias is None else Call("add", (Arg(0), Arg(1)))
    y = b.emit("linear", (flat, w, *extras), shape, epilogue=epilogue or plain)
    return b.reshape(y, (*lead, w.shape[0]))


def _outer(b: Builder, x: Tensor, w: Tensor, bias: Tensor | None, epilogue: Expr | None) -> Tensor:
    """x [..., 1] times w [n, 1]: nothing to sum up."""
    row = w.view(w.layout.squeeze(1))
    total: Expr = epilogue or (Arg(0) if bias is None else Call("add", (Arg(0), Arg(1))))
    expr = substitute(total, lambda arg: Arg(arg.index + 1) if arg.index else Call("mul", (Arg(0), Arg(1))))
    return apply(b, expr, (x, row, *(() if bias is None else (bias,))), (*x.shape[:-1], *row.shape))


def _linear(b: Builder, x: Tensor, w: Tensor, bias: Tensor | None = None) -> Tensor:
    return product(b, x, w, bias)


def _mm(b: Builder, x: Tensor, w: Tensor) -> Tensor:
    return product(b, x, w.view(w.layout.permute((1, 0))))


def _addmm(b: Builder, bias: Tensor, x: Tensor, w: Tensor, beta: float = 1, alpha: float = 1) -> Tensor:
    scaled = Call("mul", (Arg(0), Const(float(alpha))))
    offset = Call("mul", (Arg(1), Const(float(beta))))
    epilogue = None if alpha == beta == 1 else Call("add", (scaled, offset))
    return product(b, x, w.view(w.layout.permute((1, 0))), bias, epilogue)


CLAIMS = {"aten.linear.default": _linear, "aten.mm.default": _mm, "aten.addmm.default": _addmm}
