"""Graph -> Graph. Products of a few rows with weights become streams; norms, gates, neighbours, attention and argmax move in."""

from collections import defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

from mkc.ir.dtype import DType
from mkc.ir.expr import Arg, Call, Expr, substitute
from mkc.ir.graph import Attr, Graph, Kind, Node, Storage, Tensor, scratch
from mkc.ir.layout import Layout
from mkc.ir.target import Target
from mkc.ir.tiling import Tiling
from mkc.ops import registry
from mkc.ops._epilogue import epilogue
from mkc.ops._streaming import MOST_ROWS, VECTOR
from mkc.ops.decode_attention import batch as sequences
from mkc.ops.layer_norm import parameters
from mkc.ops.rms_norm import gain
from mkc.ops.stream_linear import abreast, extras, first_weight, residual, weights
from mkc.passes._stream_attention import attend
from mkc.passes._stream_choice import choose
from mkc.passes._stream_halves import halve
from mkc.passes._stream_norms import move_in
from mkc.passes._uses import Uses, rewritten
from mkc.passes.fuse import MAX_OPERANDS, without_dead_nodes
from mkc.passes.pack import LEAST_SLOTS, ring_slots

DEEPEST = 1 << 15  # a row in shared memory, beside the ring
DEEPEST_CENTRED = 1 << 13  # one that is held in registers until its mean is known
MOST_PIECES = 8  # of an operand
WORD = 4  # elements that are published at once
NORMS = ("rms_norm", "layer_norm")
WIDE_READERS = ("elementwise", "rms_norm", "rotary")  # compute in float32 whatever they read


def stream(graph: Graph, target: Target) -> Graph:
    """The graph with streams in it, or as it is, where they would not move most of its bytes, or leave no room for their ring."""
    streamed = _streamed(graph, target)
    fits = ring_slots(streamed, target) >= LEAST_SLOTS
    return streamed if fits and _prevail(streamed, target) else graph


def _streamed(graph: Graph, target: Target) -> Graph:
    """Rewrites that make streams, each of what the one before left; attention between them and the choice after; then who polls whom."""
    for rewrite in (_narrow, _products, _norms, without_dead_nodes, _gates, _neighbours):
        graph = rewrite(graph)
    graph = halve(choose(_abreast(move_in(_rows_to_all(attend(graph, target))), target), target), target)
    return _publish(without_dead_nodes(graph), target.choices.signalled)


def _prevail(graph: Graph, target: Target) -> bool:
    """A worker that streams does little else well: its registers and its shared memory are taken."""
    streamed = others = 0.0
    for node in graph.nodes:
        nbytes = _moved(registry()[node.op].tile(node, target))
        if registry()[node.op].streaming:
            streamed += nbytes
        else:
            others += nbytes
    return streamed > others


def _moved(tiling: Tiling) -> float:
    """Bytes that all tasks move, were they all like the first."""
    first = tuple(axis.at(0) for axis in tiling.grid)
    return tiling.size * sum(m.moved(first) for m in (*tiling.imaps, *tiling.omaps))


# ---- products of a few rows


def _narrow(graph: Graph) -> Graph:
    """A product or a norm that is widened when it is stored stays bfloat16, where its readers would widen it as well."""
    uses = Uses(graph)
    narrow: dict[Storage, Storage] = {}
    changes: dict[int, Node | None] = {}
    for number, node in enumerate(graph.nodes):
        match epilogue(node):
            case Call("to_float32", (expr,)) if _is_row(node) and _may_narrow(uses, node, narrow):
                storage = node.output.storage
                narrow[storage] = replace(storage, nbytes=storage.nbytes // 2)
                changes[number] = node.with_attrs(epilogue=expr)

    def view(t: Tensor) -> Tensor:
        return Tensor(DType.BF16, t.layout, narrow[t.storage]) if t.storage in narrow else t

    return rewritten(graph, changes, view)


def _is_row(node: Node) -> bool:
    """A product or a norm that streams may come to."""
    return (node.op == "linear" and _is_stream(node)) or (node.op in NORMS and node.output.layout.numel == node.output.shape[-1])


def _may_narrow(uses: Uses, node: Node, narrow: Collection[Storage]) -> bool:
    """The result was bfloat16 before it was widened, and whoever reads it reads floats."""
    out, readers = node.output, uses.readers[node.output.storage]
    ours = uses.maker(out, node.op) is not None and uses.is_private(out, *readers)
    widened = all(t.dtype is DType.BF16 or t.storage in narrow for t in node.inputs) and out.dtype is DType.F32
    return ours and widened and all(uses.nodes[r].op in WIDE_READERS for r in readers)


def _products(graph: Graph) -> Graph:
    return rewritten(graph, {i: _product(n) for i, n in enumerate(graph.nodes) if n.op == "linear" and _is_stream(n)})


def _is_stream(node: Node) -> bool:
    """A few rows of bfloat16 times a parameter, in pieces that vector loads can take."""
    x, w, *rest = node.inputs
    k = w.shape[1]
    row = x.shape[1:] == (k,) and x.layout.is_contiguous and x.dtype is DType.BF16 and k <= DEEPEST
    few = x.shape[0] <= MOST_ROWS
    vectors = k % VECTOR == x.layout.offset % VECTOR == 0
    weight = w.storage.kind is Kind.PARAM and w.dtype is DType.BF16  # however it lies, for it is packed
    result = node.output.layout.is_contiguous and node.output.dtype in (DType.BF16, DType.F32)
    return row and few and vectors and weight and result and all(t.dtype.is_float for t in rest)


def _product(node: Node) -> Node:
    name = node.name.replace("linear", "stream_linear")
    attrs: dict[str, Attr] = dict(
        eps=0.0, offset=0.0, centred=False, shifted=False, post_eps=0.0, post_offset=0.0,
        merge=0, weights=1, gated=False, halved=False, abreast=1, best=0, epilogue=epilogue(node),
    )  # fmt: skip
    return replace(node, name=name, op="stream_linear", attrs=tuple(attrs.items()))


# ---- norms


def _norms(graph: Graph) -> Graph:
    """A norm that only streams read is computed by each of them."""
    uses = Uses(graph)
    changes: dict[int, Node | None] = {}
    for number, node in enumerate(graph.nodes):
        found = _norm(uses, number)
        readers = uses.readers[node.outputs[0].storage]
        if found and all(_takes(uses, reader, node.output, found) for reader in readers):
            changes |= {reader: _normed(uses.nodes[reader], found) for reader in readers}
    return rewritten(graph, changes)


@dataclass(frozen=True, slots=True)
class _Norm:
    """A norm of bfloat16 rows: x [B, K], gain [K], and shift [K] if there is one."""

    inputs: tuple[Tensor, ...]
    eps: Attr
    offset: float  # that the gain is added to
    centred: bool


def _norm(uses: Uses, number: int) -> _Norm | None:
    """Of several rows only RMS norms."""
    node = uses.nodes[number]
    lines, offset = tuple[Tensor, ...](), 0.0
    if node.op == "rms_norm" and (scaled := gain(node)):
        lines, offset = (scaled[0],), scaled[1]
    if node.op == "layer_norm" and node.output.layout.numel == node.output.shape[-1] <= DEEPEST_CENTRED:
        lines = parameters(node)
    rows = _normalised(uses, number) if lines else None
    return _Norm((rows, *lines), node["eps"], offset, node.op == "layer_norm") if rows else None


def _normalised(uses: Uses, number: int) -> Tensor | None:
    """The rows [B, K] of bfloat16 that the node normalises, when they are few."""
    node = uses.nodes[number]
    x, out = node.inputs[0], node.output
    if out.layout.numel > MOST_ROWS * out.shape[-1] or not uses.is_private(out, *uses.readers[out.storage]):
        return None
    cast = uses.maker(x, "elementwise")
    if x.dtype is DType.F32 and cast is not None and uses.nodes[cast]["expr"] == Call("to_float32", (Arg(0),)):
        if not uses.are_still(uses.nodes[cast].inputs, cast, number):
            return None
        x = uses.nodes[cast].inputs[0]
    flat = x.layout.reshape((out.layout.numel // out.shape[-1], out.shape[-1]))
    plain = x.dtype is DType.BF16 and x.layout.is_contiguous and x.layout.numel == out.layout.numel
    return x.view(flat) if flat and plain and x.layout.offset % VECTOR == 0 else None


def _takes(uses: Uses, reader: int, out: Tensor, found: _Norm) -> bool:
    """True when the node is a plain stream of all of the norm's result, and could be one of what the norm reads."""
    node, (number,) = uses.nodes[reader], uses.writers[out.storage]
    plain = node.op == "stream_linear" and not node["eps"] and not node["merge"]
    once = sum(t.storage == out.storage for t in node.inputs) == 1 and node.inputs[0].storage == out.storage
    same = node.inputs[0].layout.numel == out.layout.numel and node.inputs[0].shape[-1] == out.shape[-1]
    return plain and once and same and uses.are_still(found.inputs, number, reader)


def _normed(node: Node, found: _Norm) -> Node:
    attrs: dict[str, Attr] = dict(eps=found.eps, offset=found.offset, centred=found.centred, shifted=len(found.inputs) == 3)
    return replace(node.with_attrs(**attrs), inputs=(*found.inputs, *node.inputs[1:]))


# ---- gates


def _gates(graph: Graph) -> Graph:
    """Two products of the same row, one of which only the other's epilogue reads, become one."""
    uses = Uses(graph)
    changes: dict[int, Node | None] = {}
    for number, node in enumerate(graph.nodes):
        gate = _gate(uses, number) if _is_single(node) else None
        if gate is not None and gate not in changes:
            changes |= {gate: None, number: _gated(graph.nodes[gate], node)}
    return rewritten(graph, changes)


def _is_single(node: Node) -> bool:
    return node.op == "stream_linear" and node["weights"] == 1


def _gate(uses: Uses, number: int) -> int | None:
    node = uses.nodes[number]
    for extra in extras(node):
        gate = uses.maker(extra, "stream_linear")
        if gate is not None and _is_single(uses.nodes[gate]) and _gates_only(uses, gate, number, extra):
            return gate
    return None


def _gates_only(uses: Uses, gate: int, number: int, extra: Tensor) -> bool:
    first, then = uses.nodes[gate], uses.nodes[number]
    alike = _row(first) == _row(then) and extra.layout.is_contiguous and extra.layout.numel == first.output.layout.numel
    alike = alike and extra.layout.numel % WORD == 0
    once = sum(t.storage == extra.storage for t in then.inputs) == 1 and uses.is_private(extra, number)
    few = len(first.inputs) + len(then.inputs) <= MAX_OPERANDS
    return alike and once and few and uses.are_still(first.inputs, gate, number)


def _row(node: Node) -> tuple[object, ...]:
    """What a stream multiplies its weights with."""
    return *(node[key] for key in ("eps", "offset", "centred", "merge")), *node.inputs[: first_weight(node)]


def _gated(gate: Node, node: Node) -> Node:
    mine = [t for t in extras(node) if t.storage != gate.output.storage]
    held = extras(gate)
    opened = substitute(epilogue(gate), lambda arg: Arg(arg.index + 1) if arg.index else arg)

    def operand(arg: Arg) -> Expr:
        if not arg.index:
            return Arg(1)
        extra = extras(node)[arg.index - 1]
        return Arg(2 + len(held) + mine.index(extra)) if extra in mine else opened

    rows = node.inputs[: first_weight(node)]
    inputs = (*rows, *weights(gate), *weights(node), *held, *mine)
    return replace(node.with_attrs(weights=2, gated=True, epilogue=substitute(epilogue(node), operand)), inputs=inputs)


# ---- neighbours


def _neighbours(graph: Graph) -> Graph:
    """Products of the same row that the same is done to become one, in the place of the first; each keeps its columns."""
    uses = Uses(graph)
    groups: dict[tuple[object, ...], list[int]] = defaultdict(list)
    for number, node in enumerate(graph.nodes):
        if _is_single(node) and _may_join(uses, node):
            groups[*_row(node), epilogue(node), len(extras(node))].append(number)
    changes: dict[int, Node | None] = {}
    moved: dict[Storage, tuple[Storage, int, int, int]] = {}
    for group in (g for numbers in groups.values() for g in _unbroken(uses, numbers) if len(g) > 1):
        nodes = [graph.nodes[number] for number in group]
        changes |= dict.fromkeys(group)
        changes[group[0]] = joined = _joined(nodes)
        at = 0
        for node in nodes:
            moved[node.output.storage] = joined.output.storage, at, node.output.shape[1], joined.output.shape[1]
            at += node.output.shape[1]

    def view(t: Tensor) -> Tensor:
        if t.storage not in moved:
            return t
        storage, at, width, total = moved[t.storage]
        layout = widened(t.layout, width, total)
        assert layout is not None  # or it would not have joined
        return Tensor(t.dtype, replace(layout, offset=layout.offset + at), storage)

    return rewritten(graph, changes, view)


def _may_join(uses: Uses, node: Node) -> bool:
    """Nothing further is done to the result, or one parameter added, or the like."""
    out, others = node.output, extras(node)
    plain = len(others) < 2 and all(t.storage.kind is Kind.PARAM for t in others) and out.shape[1] % WORD == 0
    scratch = uses.maker(out, node.op) is not None and out.dtype is DType.BF16 and out.storage not in uses.returned
    return plain and scratch and (out.shape[0] == 1 or _has_rows_of_its_own(uses, out))


def _has_rows_of_its_own(uses: Uses, out: Tensor) -> bool:
    """Nobody's view of the rows has a dimension that runs on from one to the next."""
    nodes = [uses.nodes[number] for number in (*uses.readers[out.storage], *uses.writers[out.storage])]
    seen = (t for n in nodes for t in (*n.inputs, *n.outputs) if t.storage == out.storage)
    return all(widened(t.layout, out.shape[1], out.shape[1]) for t in seen)


def widened(layout: Layout, width: int, total: int) -> Layout | None:
    """The same elements when rows of `width` stand `total` apart; None where a dimension runs on from row to row."""
    steps = [(n, s) for n, s in zip(layout.shape, layout.strides, strict=True) if n > 1]
    within = sum(s * (n - 1) for n, s in steps if s < width) + layout.offset % width
    if within >= width or any(s % width for _, s in steps if s >= width):
        return None
    strides = tuple(s // width * total if n > 1 and s >= width else s for n, s in zip(layout.shape, layout.strides, strict=True))
    return Layout(layout.shape, strides, layout.offset // width * total + layout.offset % width)


def _unbroken(uses: Uses, numbers: Sequence[int]) -> list[list[int]]:
    """The numbers in runs during which nobody writes the row, and of which a task may have all operands."""
    runs: list[list[int]] = []
    for number in numbers:
        few = runs and (not extras(uses.nodes[number]) or len(runs[-1]) < MOST_PIECES)
        if few and uses.are_still(uses.nodes[number].inputs, runs[-1][0], number):
            runs[-1].append(number)
        else:
            runs.append([number])
    return runs


def _joined(nodes: Sequence[Node]) -> Node:
    first = nodes[0]
    rows, total = first.output.shape[0], sum(node.output.shape[1] for node in nodes)
    out = scratch(f"{first.output.storage.name}_joined", (rows, total), DType.BF16)
    pieces = (piece for node in nodes for piece in extras(node))
    inputs = (*first.inputs[: first_weight(first)], *(w for node in nodes for w in weights(node)), *pieces)
    return replace(first.with_attrs(weights=len(nodes)), inputs=inputs, outputs=(out,))


# ---- norms that are read by more than streams


def _rows_to_all(graph: Graph) -> Graph:
    """A norm of one row between streams, in which the residual moves in, say, is computed by one worker for all."""
    uses = Uses(graph)
    return rewritten(graph, {i: _row_to_all(uses, n) for i, n in enumerate(graph.nodes) if _is_between(uses, n)})


def _is_between(uses: Uses, node: Node) -> bool:
    if node.op not in NORMS or not _is_row(node) or node.output.layout.numel > DEEPEST_CENTRED:
        return False
    x, out = node.inputs[0], node.output
    width = out.layout.numel
    rows = all(t.dtype is DType.BF16 and t.layout.numel == width and t.layout.is_contiguous for t in (*node.inputs, out))
    aligned = all(t.layout.offset % VECTOR == 0 for t in node.inputs)
    streams = any(uses.nodes[r].op in ("stream_linear", "decode_attention") for r in uses.readers[out.storage])
    return rows and aligned and width % WORD == 0 and streams and uses.maker(x, "stream_linear", *NORMS) is not None


def _row_to_all(uses: Uses, node: Node) -> Node:
    def flat(t: Tensor) -> Tensor:
        return t.view(Layout((1, t.layout.numel), (t.layout.numel, 1), t.layout.offset))

    attrs: dict[str, Attr] = dict(eps=node["eps"], centred=node.op == "layer_norm", epilogue=epilogue(node))
    inputs, outputs = tuple(map(flat, node.inputs)), (flat(node.output),)
    return replace(node, name=f"stream_{node.name}", op="stream_norm", inputs=inputs, outputs=outputs, attrs=tuple(attrs.items()))


# ---- depths that the compute warps would not share evenly


def _abreast(graph: Graph, target: Target) -> Graph:
    """Tiles of a stream pass side by side where less is read then."""
    streams = {i: node for i, node in enumerate(graph.nodes) if node.op == "stream_linear"}
    return rewritten(graph, {i: node.with_attrs(abreast=abreast(node, target)) for i, node in streams.items()})


# ---- published results


def _publish(graph: Graph, signalled: Sequence[str]) -> Graph:
    """Scratch that streams write and only streams read, as rows or operands, becomes words, unless it is to be signalled."""
    made = {t.storage for n in graph.nodes if n.op in POLLED for t in n.outputs if t.storage.kind is Kind.ARENA}
    public = {t.storage for n in graph.nodes for t in (*n.inputs, *n.outputs) if not _is_polled(n, t)}
    public |= {storage for storage, kind in _edges(graph).items() if kind in signalled}
    words = {s: replace(s, kind=Kind.WORDS) for s in made - public - {t.storage for t in graph.outputs}}
    return rewritten(graph, {}, lambda t: replace(t, storage=words.get(t.storage, t.storage)))


def _edges(graph: Graph) -> dict[Storage, str]:
    """The kind of edge that a result is for its readers, where it need not be words: parts of attention, the best of shares
    and the heads of a batch must.

    What goes into a norm is of the kind of what comes out. Else its one worker alone would see the event, and all others
    by polls that it had: the checker refuses events that are kept from being overtaken by polls.
    """
    kinds: dict[Storage, str] = {}
    for node in graph.nodes:
        match node.op:
            case "stream_linear" if not node["best"]:
                kinds[node.output.storage] = "rows"
            case "stream_merge":
                kinds[node.output.storage] = "rows"
            case "stream_norm":
                kinds[node.output.storage] = "norms"
            case "decode_attention":
                heads = {t.storage for t in node.inputs[:3]} & kinds.keys()
                kinds |= dict.fromkeys(heads, "heads" if sequences(node) == 1 else "")
    for norm in (node for node in reversed(graph.nodes) if node.op == "stream_norm"):
        kinds |= dict.fromkeys({t.storage for t in norm.inputs} & kinds.keys(), kinds[norm.output.storage])
    return kinds


def _is_polled(node: Node, tensor: Tensor) -> bool:
    """By the word, which is four elements of a row in bfloat16; two are read at once."""
    row = tensor.shape[-1] if tensor.shape else 1
    whole = tensor.dtype is DType.F32 or tensor.layout.offset % VECTOR == 0 == row % WORD
    return node.op in POLLED and whole and tensor in POLLED[node.op](node)


def _stream_words(node: Node) -> tuple[Tensor, ...]:
    lse = (node.inputs[first_weight(node) - 2],) if node["merge"] else ()
    values = (node.inputs[0], *residual(node), *extras(node), *node.outputs)
    entries = node.outputs if node["best"] else ()
    return (*lse, *entries, *(t for t in values if t.dtype is DType.BF16 and t.layout.is_contiguous))


def _attention_words(node: Node) -> tuple[Tensor, ...]:
    return (*node.inputs[:3], *node.outputs[:2])


def _all_words(node: Node) -> tuple[Tensor, ...]:
    return (*node.inputs, *node.outputs)


def _argmax_words(node: Node) -> tuple[Tensor, ...]:
    return node.inputs[:1]


# what each may poll or publish
POLLED = {
    "stream_linear": _stream_words, "decode_attention": _attention_words, "stream_argmax": _argmax_words, "stream_norm": _all_words,
    "stream_merge": _all_words,
}  # fmt: skip
