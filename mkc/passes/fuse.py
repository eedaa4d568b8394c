"""Graph -> Graph. Fewer, larger operators: patterns become operators, elementwise work moves into its producer or consumer."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

from mkc.ir.expr import Arg, Call, Const, Expr, size, substitute
from mkc.ir.graph import Attr, Graph, Kind, Node, Storage, Tensor
from mkc.ir.layout import Layout, Shape, coalesce
from mkc.ir.program import MAX_AXES
from mkc.ops import patterns, registry

MAX_OPERANDS = 12
MAX_CALLS = 48  # of one expression; operands used twice are written twice, so chains could grow without end
QUICK = frozenset("add sub mul neg eq ne lt le gt ge to_float32 to_bfloat16 to_float16 to_int64 to_int32".split())
FEW_CALLS = 4  # of quick functions, which are made again for each reader sooner than handed over
LINES = 256  # bytes that come as soon as one: a few cache lines
NUMBER = 8  # bytes of the widest


def fuse(graph: Graph) -> Graph:
    """Patterns are looked for twice: as torch spelled them out, and once elementwise chains are single nodes."""
    for _ in range(2):
        for rewrite in patterns():
            graph = rewrite(graph)
        graph = _merge(without_dead_nodes(graph))
    return graph


def _merge(graph: Graph) -> Graph:
    """Visit consumers in order; each takes in its producers as long as one can be merged."""
    program = _Program(graph)
    for number in range(len(graph.nodes)):
        while (node := program.nodes[number]) and (merged := _with_some_producer(program, number, node)):
            program.replace(*merged)
    return program.graph()


def _with_some_producer(program: "_Program", number: int, node: Node) -> tuple[int, int, Node] | None:
    """(producer, consumer, the node that replaces both, in the consumer's place), latest producer first."""
    found = {program.producer(t) for t in node.inputs} - {None}
    for producer in sorted((p for p in found if p is not None), reverse=True):
        first = program.nodes[producer]
        assert first is not None
        if not program.may_move(producer, number):
            continue
        for merge in (_into_producer, _into_consumer) if program.is_read_once(first) else (_into_consumer,):
            merged = merge(first, node)
            if merged and _is_sound(merged) and _is_reasonable(merged):
                return producer, number, merged
    return None


def _into_producer(first: Node, then: Node) -> Node | None:
    """`then` is elementwise: it becomes the epilogue of `first`, or grows the expression that `first` is."""
    if then.op != "elementwise" or first.op == "elementwise":
        return None
    expr, made = _expr(then, "expr"), first.output
    copies = expr == Arg(0) and len(then.inputs) == 1
    if not (registry()[first.op].stores or (copies and then.output.dtype is made.dtype)):
        return None
    frame = _frame_of(made, [t for t in then.inputs if t.storage == made.storage])
    if frame is None:
        return None
    others = _distinct(t for t in then.inputs if t.storage != made.storage)
    output, seen = frame(then.output), _all(map(frame, others))
    if output is None or len(seen) < len(others):
        return None
    if not registry()[first.op].stores:
        return replace(first, outputs=(output,))
    own = _expr(first, "epilogue")
    held = _operands(own)
    places = [own if t.storage == made.storage else Arg(held + _place(t, others)) for t in then.inputs]
    epilogue = substitute(expr, lambda arg: places[arg.index])
    return _with(first, (*first.inputs, *seen), output, epilogue=epilogue, path=then.path if not first.path else first.path)


def _into_consumer(first: Node, then: Node) -> Node | None:
    """`first` is elementwise, and so is what `then` does to its first inputs: the expressions nest."""
    if first.op != "elementwise" or "expr" not in then:
        return None
    outer, made = _expr(then, "expr"), first.output
    reads, extras = then.inputs[: _operands(outer)], then.inputs[_operands(outer) :]
    uses = [t for t in reads if t.storage == made.storage]
    if not uses or any(u.layout != uses[0].layout for u in uses) or any(t.storage == made.storage for t in extras):
        return None
    if made.dtype.is_float and made.dtype.itemsize < 4 and not then.output.dtype.is_float:
        return None  # what decides an integer or a truth is rounded as torch rounds it
    seen = _as_consumer_sees(first, uses[0]), reads, then.output
    mine, reads, output = seen if seen[0] or extras else _as_producer_sees(first, then, uses)
    if not mine:
        return None
    operands = tuple(dict.fromkeys([*(t for t in reads if t.storage != made.storage), *mine]))
    inner = substitute(_expr(first, "expr"), lambda arg: Arg(operands.index(mine[arg.index])))
    places = [inner if t.storage == made.storage else Arg(operands.index(t)) for t in reads]
    expr = substitute(outer, lambda arg: places[arg.index])
    return _with(then, (*operands, *extras), output, expr=expr)


def _as_consumer_sees(first: Node, use: Tensor) -> tuple[Tensor, ...]:
    """The producer's operands in the shape of its consumer, or none where that cannot be."""
    into = _frame_onto(first, use)
    return _all(into(t) for t in first.inputs)


def _as_producer_sees(first: Node, then: Node, uses: list[Tensor]) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...], Tensor]:
    """The producer's operands, and those of an elementwise consumer and its output in the producer's shape."""
    back = _frame_of(first.output, uses) if then.op == "elementwise" else None
    output = back and back(then.output)
    reads = _all(back(t) for t in then.inputs) if back else ()
    return (first.inputs, reads, output) if reads and output else ((), (), then.output)


def _distinct(tensors: Iterable[Tensor]) -> tuple[Tensor, ...]:
    """Each once, however often it is read."""
    found: tuple[Tensor, ...] = ()
    for t in tensors:
        found = found if any(_are_same(t, other) for other in found) else (*found, t)
    return found


def _place(tensor: Tensor, among: Sequence[Tensor]) -> int:
    return next(i for i, other in enumerate(among) if _are_same(tensor, other))


def _all(tensors: Iterable[Tensor | None]) -> tuple[Tensor, ...]:
    """All of them, or none."""
    found = tuple(tensors)
    there = tuple(t for t in found if t is not None)
    return there if len(there) == len(found) else ()


def _with(node: Node, inputs: tuple[Tensor, ...], output: Tensor, path: str | None = None, **attrs: Attr) -> Node:
    kept = tuple((k, v) for k, v in node.attrs if k not in attrs)
    return replace(node, inputs=inputs, outputs=(output,), attrs=(*kept, *attrs.items()), path=node.path if path is None else path)


def _expr(node: Node, key: str) -> Expr:
    if key not in node:
        return Arg(0)
    expr = node[key]
    assert isinstance(expr, Arg | Call | Const)
    return expr


def _is_sound(node: Node) -> bool:
    """Tasks of one node run in any order, so none may read what another writes."""
    out = node.output
    shared = [t for t in node.inputs if t.storage == out.storage]
    return not shared or (node.op == "elementwise" and all(_are_same(t, out) for t in shared))


def _are_same(one: Tensor, other: Tensor) -> bool:
    """True when both show the same elements at the same places; how far they step where there is but one does not matter."""
    alike = (one.dtype, one.storage, one.shape) == (other.dtype, other.storage, other.shape)
    return alike and len(set(coalesce([one.layout, other.layout]))) == 1


def _is_reasonable(node: Node) -> bool:
    """Small enough to compile well, and with few enough dimensions that lie differently in its tensors for a task."""
    calls = sum(size(_expr(node, key)) for key in ("expr", "epilogue"))
    return len(node.inputs) <= MAX_OPERANDS and calls <= MAX_CALLS and _axes(node) <= MAX_AXES


def _axes(node: Node) -> int:
    """Of a task of the node: dimensions that lie alike in its tensors are one, as are those of rows of different widths."""
    out, tensors = node.output, (*node.inputs, node.output)
    alike = [t.layout for t in tensors if t.shape == out.shape]
    deep = [t.layout for t in tensors if t.layout.rank == out.layout.rank > 1 and t.shape[:-1] == out.shape[:-1]]
    rows = [layout.select(layout.rank - 1, 0) for layout in deep]
    return max(coalesce(alike)[0].rank, 1 + coalesce(rows)[0].rank if rows else 0)


def _operands(expr: Expr) -> int:
    """One more than the highest operand: the result itself counts as operand 0."""
    match expr:
        case Arg(index):
            return index + 1
        case Const():
            return 1
        case Call(_, args):
            return max(1, *map(_operands, args)) if args else 1


Frame = Callable[[Tensor], Tensor | None]


def _frame_of(made: Tensor, uses: list[Tensor]) -> Frame | None:
    """How tensors of the consumer's shape look in the producer's, when the consumer sees all of `made` exactly once."""
    first = uses[0]
    if any(u.layout != first.layout for u in uses) or not _is_all_of(first.layout, made.layout):
        return None
    order = _storage_order(first.layout)

    def frame(tensor: Tensor) -> Tensor | None:
        layout = tensor.layout.permute(order).reshape(made.shape)
        return None if layout is None else tensor.view(layout)

    return frame


def _frame_onto(first: Node, use: Tensor) -> Frame:
    """How tensors of the producer's shape look in the consumer's, which may repeat what is quickly made."""
    once = _unrepeated(use.layout) if _is_quick(first) else use.layout
    if not _is_all_of(once, first.output.layout):
        return lambda tensor: None
    order = _storage_order(once)
    sorted_shape: Shape = tuple(once.shape[d] for d in order)
    back = tuple(order.index(d) for d in range(len(order)))

    def frame(tensor: Tensor) -> Tensor | None:
        layout = tensor.layout.reshape(sorted_shape)
        return None if layout is None else tensor.view(layout.permute(back).expand(use.shape))

    return frame


def _unrepeated(layout: Layout) -> Layout:
    """The layout without repetitions: extents of one where the stride is zero."""
    pairs = zip(layout.shape, layout.strides, strict=True)
    return replace(layout, shape=tuple(n if step else 1 for n, step in pairs))


def _is_quick(node: Node) -> bool:
    """True when computing elements again is worth no more than reading them: few operations, and no more lines of memory,
    beside single numbers."""
    if node.op != "elementwise" or not _calls(_expr(node, "expr")) <= QUICK or size(_expr(node, "expr")) > FEW_CALLS:
        return False
    read = [min(t.nbytes, t.storage.nbytes) for t in node.inputs]
    return sum(n for n in read if n > NUMBER) <= max(node.output.nbytes, LINES)


def _calls(expr: Expr) -> set[str]:
    """The functions that the expression calls."""
    return {expr.fn}.union(*map(_calls, expr.args)) if isinstance(expr, Call) else set()


def _is_all_of(use: Layout, made: Layout) -> bool:
    """True when `use` shows every element of a contiguous tensor once, in whatever order of dimensions."""
    whole = made.is_contiguous and use.offset == made.offset and use.numel == made.numel
    return whole and use.permute(_storage_order(use)).is_contiguous


def _storage_order(layout: Layout) -> tuple[int, ...]:
    """Dimensions from the largest stride to the smallest; those of one element stay where they are worth least."""
    return tuple(sorted(range(layout.rank), key=lambda d: (-layout.strides[d] if layout.shape[d] > 1 else -1, d)))


class _Program:
    """Nodes that can be merged, and who writes and reads each storage."""

    def __init__(self, graph: Graph) -> None:
        self.original = graph
        self.nodes: list[Node | None] = list(graph.nodes)
        self.writers: dict[Storage, set[int]] = defaultdict(set)
        self.readers: dict[Storage, set[int]] = defaultdict(set)
        self.returned = {t.storage for t in graph.outputs}
        for number, node in enumerate(graph.nodes):
            self._enter(number, node)

    def _enter(self, number: int, node: Node) -> None:
        for tensor in node.inputs:
            self.readers[tensor.storage].add(number)
        for tensor in node.outputs:
            self.writers[tensor.storage].add(number)

    def _leave(self, number: int) -> None:
        node = self.nodes[number]
        assert node is not None
        for tensor in node.inputs:
            self.readers[tensor.storage].discard(number)
        for tensor in node.outputs:
            self.writers[tensor.storage].discard(number)

    def producer(self, tensor: Tensor) -> int | None:
        """The only node that writes this arena storage, when it has one output, and one reader unless it is quick."""
        storage = tensor.storage
        if storage.kind is not Kind.ARENA or len(self.writers[storage]) != 1:
            return None
        (number,) = self.writers[storage]
        node = self.nodes[number]
        if node is None or len(node.outputs) != 1:
            return None
        return number if self.is_read_once(node) or _is_quick(node) else None

    def is_read_once(self, node: Node) -> bool:
        return len(self.readers[node.output.storage]) == 1

    def may_move(self, number: int, later: int) -> bool:
        """True when nothing from `number` up to `later` writes what the node reads."""
        node = self.nodes[number]
        assert node is not None
        return not any(number < w < later for t in node.inputs for w in self.writers[t.storage])

    def replace(self, first: int, then: int, merged: Node) -> None:
        """The producer stays for those who still read it."""
        node = self.nodes[first]
        assert node is not None
        if self.is_read_once(node):
            self._leave(first)
            self.nodes[first] = None
        self._leave(then)
        self.nodes[then] = merged
        self._enter(then, merged)

    def graph(self) -> Graph:
        return replace(self.original, nodes=tuple(n for n in self.nodes if n is not None))


def without_dead_nodes(graph: Graph) -> Graph:
    """Nodes whose results nobody reads are dropped."""
    needed = {t.storage for t in graph.outputs}
    kept: list[Node] = []
    for node in reversed(graph.nodes):
        if any(t.storage in needed or t.storage.kind is not Kind.ARENA for t in node.outputs):
            needed |= {t.storage for t in node.inputs}
            kept.append(node)
    return replace(graph, nodes=tuple(reversed(kept)))
