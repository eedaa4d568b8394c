"""y[m, n] = sum_k x[m, k] w[n, k], then an epilogue: what nn.Linear, addmm and a matmul by a matrix become."""

from collections import defaultdict
from collections.abc import Sequence, Set
from dataclasses import replace

from mkc.ir.builder import Builder
from mkc.ir.cost import cut
from mkc.ir.dtype import Array
from mkc.ir.expr import Arg, Call, Const, Expr, substitute
from mkc.ir.graph import Graph, Kind, Node, Storage, Tensor
from mkc.ir.layout import Layout, contiguous
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


# ---- the pattern


def rewrite(graph: Graph) -> Graph:
    """Graph -> Graph. A product whose halves are all that elementwise operators see becomes two, for one to gate the other."""
    readers: dict[Storage, list[Node]] = defaultdict(list)
    for reader in graph.nodes:
        for storage in {t.storage for t in reader.inputs}:
            readers[storage].append(reader)
    kept = {t.storage for t in graph.outputs}
    split = {node.name: node for node in graph.nodes if _is_halved(node, readers[node.outputs[0].storage], kept)}
    halves = {node.output.storage: tuple(_half(node, i) for i in range(2)) for node in split.values()}

    def seen(t: Tensor) -> Tensor:
        if t.storage not in halves:
            return t
        half = halves[t.storage][t.layout.offset // t.shape[-1]].output
        return Tensor(t.dtype, contiguous(t.shape), half.storage)

    def nodes(node: Node) -> tuple[Node, ...]:
        return halves[node.output.storage] if node.name in split else (replace(node, inputs=tuple(map(seen, node.inputs))),)

    return replace(graph, nodes=tuple(made for node in graph.nodes for made in nodes(node))) if split else graph


PATTERN = rewrite


def _is_halved(node: Node, readers: Sequence[Node], kept: Set[Storage]) -> bool:
    if node.op != "linear" or node.output.storage.kind is not Kind.ARENA or node.output.storage in kept:
        return False
    seen = [t for reader in readers for t in reader.inputs if t.storage == node.output.storage]
    places = {t.layout.offset for t in seen} if all(_is_half(t, node.output) for t in seen) else set()
    whole = node.output.layout == contiguous(node.output.shape)
    return whole and places == {0, node.output.shape[1] // 2} and all(reader.op == "elementwise" for reader in readers)


def _is_half(t: Tensor, out: Tensor) -> bool:
    """The left or the right half of all rows [M, N], under whatever shape."""
    (*lead, count), (rows, columns) = t.shape, out.shape
    whole = Layout((*lead, columns), t.layout.strides)
    return t.dtype is out.dtype and 2 * count == columns and whole.is_contiguous and whole.numel == rows * columns


def _half(node: Node, number: int) -> Node:
    x, w, *extras = node.inputs
    rows, columns = node.output.shape[0], node.output.shape[1] // 2
    lo, hi = number * columns, (number + 1) * columns
    storage = replace(node.output.storage, name=f"{node.output.storage.name}_{number}", nbytes=node.output.storage.nbytes // 2)
    inputs = (x, w.view(w.layout.slice(0, lo, hi)), *(t.view(t.layout.slice(1, lo, hi)) for t in extras))
    output = Tensor(node.output.dtype, contiguous((rows, columns)), storage)
    return replace(node, name=f"{node.name}_{number}", inputs=inputs, outputs=(output,))


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
