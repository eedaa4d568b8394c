"""Graph -> Graph. Products of a few rows with weights become streams; norms, gates, neighbours, attention and argmax move in."""

from collections.abc import Collection
from dataclasses import dataclass, replace

from mkc.ir.dtype import DType
from mkc.ir.expr import Arg, Call
from mkc.ir.graph import Attr, Graph, Kind, Node, Storage, Tensor
from mkc.ir.layout import Layout
from mkc.ir.target import Target
from mkc.ir.tiling import Tiling
from mkc.ops import registry
from mkc.ops._epilogue import epilogue
from mkc.ops._streaming import MOST_ROWS, VECTOR
from mkc.ops.layer_norm import parameters
from mkc.ops.rms_norm import gain
from mkc.ops.stream_linear import abreast
from mkc.passes._stream_attention import attend
from mkc.passes._stream_choice import choose
from mkc.passes._stream_halves import halve
from mkc.passes._stream_joined import gates, neighbours
from mkc.passes._stream_norms import move_in
from mkc.passes._stream_words import WORD, publish
from mkc.passes._uses import Uses, rewritten
from mkc.passes.fuse import without_dead_nodes
from mkc.passes.pack import LEAST_SLOTS, ring_slots

DEEPEST = 1 << 15  # a row in shared memory, beside the ring
DEEPEST_CENTRED = 1 << 13  # one that is held in registers until its mean is known
NORMS = ("rms_norm", "layer_norm")
WIDE_READERS = ("elementwise", "rms_norm", "rotary")  # compute in float32 whatever they read


def stream(graph: Graph, target: Target) -> Graph:
    """The graph with streams in it, or as it is, where they would not move most of its bytes, or leave no room for their ring."""
    streamed = _streamed(graph, target)
    fits = ring_slots(streamed, target) >= LEAST_SLOTS
    return streamed if fits and _prevail(streamed, target) else graph


def _streamed(graph: Graph, target: Target) -> Graph:
    """Rewrites that make streams, each of what the one before left; attention between them and the choice after; then who polls whom."""
    for rewrite in (_narrow, _products, _norms, without_dead_nodes, gates, neighbours):
        graph = rewrite(graph)
    graph = halve(choose(_abreast(move_in(_rows_to_all(attend(graph, target))), target), target), target)
    return publish(without_dead_nodes(graph), target.choices.signalled)


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
