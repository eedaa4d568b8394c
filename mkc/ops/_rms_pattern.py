"""Graph -> Graph. Finds x * rsqrt(mean(x^2) + eps), as most models spell it, and makes it one rms_norm."""

from dataclasses import replace

from mkc.ir.expr import Arg, Call, Const, Expr, substitute
from mkc.ir.graph import Graph, Kind, Node, Tensor


def recognise(graph: Graph) -> Graph:
    """By then the mean square is one reduce, and all that is done to the normalised rows is one elementwise node."""
    writers = {node.output.storage: node for node in graph.nodes if node.op == "reduce"}
    readers: dict[str, int] = {}
    for node in graph.nodes:
        for storage in {t.storage for t in node.inputs}:
            readers[storage.name] = readers.get(storage.name, 0) + 1
    gone: set[str] = set()
    nodes = []
    for node in graph.nodes:
        scales = [t for t in node.inputs if t.storage in writers and readers[t.storage.name] == 1]
        norms = ((s, _norm(node, s, writers[s.storage])) for s in scales)
        scale, norm = next(((s, n) for s, n in norms if n), (None, None))
        if scale is not None:
            gone.add(writers[scale.storage].name)
        nodes.append(norm or node)
    return replace(graph, nodes=tuple(n for n in nodes if n.name not in gone))


def _norm(node: Node, scale: Tensor, reduce: Node) -> Node | None:
    """The rms_norm that `node` is, when `scale` is its rows' reciprocal root mean square."""
    eps = _epsilon(reduce)
    if node.op != "elementwise" or eps is None or scale.storage.kind is not Kind.ARENA:
        return None
    shape = node.output.shape
    x = next((t for t in node.inputs if _same_rows(t, reduce.inputs[0]) and t.shape == shape), None)
    if x is None or not _along_rows(scale, x, reduce.output):
        return None
    others = tuple(t for t in node.inputs if t is not scale)
    places: list[Expr] = [Arg(0) if t is scale else Arg(1 + others.index(t)) for t in node.inputs]
    expr = substitute(_expression(node, "expr"), lambda arg: places[arg.index])
    normalised = _replaced(expr, 1 + others.index(x)) if _uses(expr, 0) == 1 else None
    if normalised is None or _uses(normalised, 1 + others.index(x)):
        return None
    kept = tuple(t for t in others if t is not x)
    order = {1 + others.index(t): 1 + kept.index(t) for t in kept}
    epilogue = substitute(normalised, lambda arg: Arg(order.get(arg.index, 0)))
    return Node(node.name, "rms_norm", (x, *kept), node.outputs, (("epilogue", epilogue), ("eps", eps)), node.path)


def _epsilon(reduce: Node) -> float | None:
    """eps, when the node gives rsqrt(mean(x^2) + eps) over the last dimension of one input."""
    if reduce["fold"] != "sum" or len(reduce.inputs) != 1:
        return None
    x = reduce.inputs[0]
    match reduce["expr"], _expression(reduce, "epilogue"):
        case (
            Call("square", (Arg(0) | Call("to_float32", (Arg(0),)),)),
            Call("rsqrt", (Call("add", (Call("div", (Arg(0), Const(count))), Const(eps))),)),
        ) if x.layout.rank == reduce.output.layout.rank + 1 and count == x.shape[-1]:
            return float(eps)
    return None


def _replaced(expr: Expr, x: int) -> Expr | None:
    """The expression with x * scale (operand 0) replaced by the operator's result; None when it is not there."""
    wide = (Arg(x), Call("to_float32", (Arg(x),)))
    match expr:
        case Call("mul", (a, Arg(0))) | Call("mul", (Arg(0), a)) if a in wide:
            return Arg(0)
        case Call(fn, args):
            found = [_replaced(arg, x) for arg in args]
            if sum(f is not None for f in found) != 1:
                return None
            return Call(fn, tuple(a if f is None else f for a, f in zip(args, found, strict=True)))
    return None


def _uses(expr: Expr, operand: int) -> int:
    """How often the expression names an operand."""
    match expr:
        case Arg(index):
            return int(index == operand)
        case Call(_, args):
            return sum(_uses(arg, operand) for arg in args)
    return 0


def _same_rows(a: Tensor, b: Tensor) -> bool:
    """The same elements, whatever extents of one are named."""
    return a.storage == b.storage and _solid(a) == _solid(b) and a.shape[-1:] == b.shape[-1:]


def _solid(tensor: Tensor) -> tuple[object, ...]:
    layout = tensor.layout
    dims = [(n, s) for n, s in zip(layout.shape, layout.strides, strict=True) if n != 1]
    return (tensor.dtype, layout.offset, *dims)


def _along_rows(scale: Tensor, x: Tensor, made: Tensor) -> bool:
    """The scale repeats along the last dimension and follows the rows of x in order."""
    layout = scale.layout
    if scale.shape != x.shape or (layout.strides[-1] != 0 and x.shape[-1] != 1):
        return False
    rows = made.layout.reshape(x.shape[:-1])
    found = [(n, s) for n, s in zip(layout.shape[:-1], layout.strides[:-1], strict=True) if n != 1]
    wanted = rows and [(n, s) for n, s in zip(rows.shape, rows.strides, strict=True) if n != 1]
    return found == wanted and layout.offset == made.layout.offset


def _expression(node: Node, key: str) -> Expr:
    expr = node[key]
    assert isinstance(expr, Arg | Call | Const)
    return expr
