"""Graph -> Graph. Attention of a position a sequence, with norms, rotations and appends before it, becomes one decode_attention."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from mkc.ir.dtype import DType
from mkc.ir.expr import Arg, Call
from mkc.ir.graph import Graph, Kind, Node, Storage, Tensor
from mkc.ir.layout import Layout, contiguous
from mkc.ir.target import Target
from mkc.ops.decode_attention import BLOCK, LINE
from mkc.ops.rms_norm import ROUNDED, gain
from mkc.passes._uses import Uses, rewritten

DEPTHS = (64, 96, 128, 256)
MOST_SEQUENCES = 16
MAX_GROUP = 8  # heads of queries that share keys
MAX_SPLITS = 8  # whoever merges them reads them all


def attend(graph: Graph, target: Target) -> Graph:
    uses = Uses(graph)
    changes: dict[int, Node | None] = {}
    for number, node in enumerate(graph.nodes):
        chain = _chain(uses, number) if node.op == "attention" else None
        readers = _readers(uses, chain) if chain else ()
        if chain and readers:
            changes |= dict.fromkeys(chain.absorbed)
            changes[chain.end] = made = _decoding(chain, node, target)
            changes |= {reader: _merging(uses.nodes[reader], made) for reader in readers}
    return rewritten(graph, changes)


@dataclass(frozen=True, slots=True)
class _Rows:
    """What became the queries, or the keys: rows [N, D], [B, N, D] of several sequences, perhaps normalised, perhaps turned."""

    tensor: Tensor
    gain: Tensor | None
    eps: float
    angles: tuple[Tensor, ...]  # cos and sin [D], or [B, D]
    read: tuple[tuple[Tensor, int], ...]  # each tensor and the node that read it
    absorbed: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class _Append:
    """Where a cache [B, KV, T, D] takes in its rows."""

    number: int
    position: Tensor
    source: Tensor
    cache: Tensor


@dataclass(frozen=True, slots=True)
class _Chain:
    queries: _Rows
    keys: _Rows
    values: Tensor
    caches: tuple[Tensor, Tensor]
    position: Tensor
    out: Tensor  # of the attention
    end: int  # the node that writes it
    absorbed: tuple[int, ...]


def _chain(uses: Uses, number: int) -> _Chain | None:
    """All that leads to an attention of one position, when it is spelled as we know it."""
    node = uses.nodes[number]
    q, k, v, *rest = node.inputs
    end = _end(uses, number)
    if end is None or len(rest) != 1 + (node["parts"] != 1) or not _fits(q, k, v):
        return None
    appends = [_append(uses, cache, rest[0], number) for cache in (k, v)]
    if not all(appends):
        return None
    first, second = (a for a in appends if a)
    queries, keys = _rows(uses, q, number, q.shape[0]), _rows(uses, first.source, first.number, q.shape[0])
    values = _heads(second.source, v.shape[3], v.shape[0])
    if queries is None or keys is None or values is None or not _agree(queries, keys):
        return None
    read = (*queries.read, *keys.read, (values, second.number), *((a.position, a.number) for a in (first, second)))
    if not all(uses.are_still((tensor,), by, end) for tensor, by in read):
        return None
    absorbed = (*queries.absorbed, *keys.absorbed, first.number, second.number, number)
    out = uses.nodes[end].output
    return _Chain(queries, keys, values, (first.cache, second.cache), first.position, out, end, absorbed)


def _end(uses: Uses, number: int) -> int | None:
    """The node that gives the attention's result: itself, or what puts its parts together."""
    node = uses.nodes[number]
    if node["parts"] == 1:
        return number
    readers = uses.readers[node.output.storage]
    merges = len(readers) == 1 and uses.nodes[readers[0]].op == "attention_merge"
    return readers[0] if merges and uses.is_private(node.output, *readers) else None


def _fits(q: Tensor, k: Tensor, v: Tensor) -> bool:
    (batch, heads, rows, depth), groups = q.shape, k.shape[1]
    alike = k.shape == v.shape and all(t.dtype is DType.BF16 for t in (q, k, v))
    return alike and batch <= MOST_SEQUENCES and rows == 1 and depth in DEPTHS and heads % groups == 0 and heads // groups <= MAX_GROUP


def _append(uses: Uses, cache: Tensor, limit: Tensor, reader: int) -> _Append | None:
    """The node that writes one row a sequence into the cache, for this reader alone, where the reader's keys end."""
    writers, readers = uses.writers[cache.storage], uses.readers[cache.storage]
    if cache.storage.kind is not Kind.STATE or len(writers) != 1 or {*readers} != {writers[0], reader}:
        return None
    (number,) = writers
    node = uses.nodes[number]
    if node.op != "append" or number > reader or node["dim"] != 2 or node["wraps"]:
        return None
    index, source, whole = node.inputs
    position = _positions(index, cache.shape[0])
    if position is None or position != _positions(limit, cache.shape[0]) or not uses.are_still((position,), number, reader):
        return None
    plain = _is_whole(whole) and _is_whole(cache) and whole.shape == cache.shape
    return _Append(number, position, source, whole.view(contiguous(whole.shape))) if plain else None


def _is_whole(tensor: Tensor) -> bool:
    return tensor.layout.is_contiguous and tensor.nbytes == tensor.storage.nbytes


def _positions(tensor: Tensor, batch: int) -> Tensor | None:
    """[B] when all integers of a sequence, along the tensor's first dimension, are one, and those of sequences neighbours."""
    first = (batch, 1) if batch > 1 else (1, 0)
    (n, step), *inner = zip(tensor.shape, tensor.layout.strides, strict=True)
    alone = tensor.dtype is DType.I64 and (n, step if n > 1 else 0) == first and not any(s for n, s in inner if n > 1)
    return tensor.view(Layout((batch,), (1,), tensor.layout.offset)) if alone else None


def _rows(uses: Uses, tensor: Tensor, reader: int, batch: int) -> _Rows | None:
    depth = tensor.shape[-1]
    absorbed, angles, factor, eps = list[int](), tuple[Tensor, ...](), None, 0.0
    read = list[tuple[Tensor, int]]()
    number = _step(uses, tensor, reader, "rotary")
    if number is not None and uses.nodes[number]["epilogue"] in (Arg(0), ROUNDED):
        tensor, *tables = uses.nodes[number].inputs
        lines = [line for t in tables if (line := _line(t, batch))]
        if len(lines) != 2:
            return None
        angles, reader = tuple(lines), number
        read += [(line, number) for line in lines]
        absorbed.append(number)
    number = _step(uses, tensor, reader, "rms_norm")
    if number is not None and (factor := gain(uses.nodes[number])) is not None:
        tensor, eps, reader = uses.nodes[number].inputs[0], uses.nodes[number].number("eps"), number
        absorbed.append(number)
        cast = uses.maker(tensor, "elementwise")
        if cast is not None and uses.nodes[cast]["expr"] == Call("to_float32", (Arg(0),)):
            tensor, reader = uses.nodes[cast].inputs[0], cast
    matrix = _heads(tensor, depth, batch)
    if matrix is None or matrix.dtype is not DType.BF16 or (factor and factor.shape != (depth,)):
        return None
    return _Rows(matrix, factor, eps, angles, (*read, (matrix, reader)), tuple(absorbed))


def _step(uses: Uses, tensor: Tensor, reader: int, op: str) -> int | None:
    """The node of this operator that makes the tensor, row by row, for this reader alone."""
    number = uses.maker(tensor, op)
    if number is None or not uses.is_private(tensor, reader):
        return None
    depth, out = tensor.shape[-1], uses.nodes[number].output
    same = out.dtype is DType.BF16 and out.shape[-1] == depth and _matrix(tensor, depth) == _matrix(out, depth)
    return number if same and _matrix(out, depth) is not None else None


def _matrix(tensor: Tensor, depth: int) -> Tensor | None:
    """The tensor as [N, depth], when its rows follow each other without gaps."""
    layout = Layout((tensor.layout.numel // depth, depth), (depth, 1), tensor.layout.offset)
    return tensor.view(layout) if tensor.layout.reshape(layout.shape) in (layout, _single(layout)) else None


def _heads(tensor: Tensor, depth: int, batch: int) -> Tensor | None:
    """As `_matrix`; of several sequences [B, N, depth], each one's rows without gaps."""
    if batch == 1:
        return _matrix(tensor, depth)
    if tensor.shape[0] != batch:
        return None
    each = _matrix(tensor.view(tensor.layout.select(0, 0)), depth)
    return each and each.view(Layout((batch, *each.shape), (tensor.layout.strides[0], depth, 1), tensor.layout.offset))


def _single(layout: Layout) -> Layout:
    """As `reshape` gives it when there is one row."""
    return replace(layout, strides=tuple(s if n > 1 else 0 for n, s in zip(layout.shape, layout.strides, strict=True)))


def _line(tensor: Tensor, batch: int) -> Tensor | None:
    """[D] when all rows of the tensor are the same one; [B, D] when those of each sequence are."""
    *lead, (depth, step) = zip(tensor.shape, tensor.layout.strides, strict=True)
    inner = lead if batch == 1 else lead[1:]
    same = step == 1 and all(n == 1 or s == 0 for n, s in inner) and tensor.dtype in (DType.BF16, DType.F32)
    if not same or (batch > 1 and lead[0][0] != batch):
        return None
    first = lead[:1] if batch > 1 else []
    return tensor.view(Layout((*(n for n, _ in first), depth), (*(s for _, s in first), 1), tensor.layout.offset))


def _agree(queries: _Rows, keys: _Rows) -> bool:
    """Both are normalised alike, by gains of their own, and turned alike."""
    return queries.eps == keys.eps and queries.angles == keys.angles


def _readers(uses: Uses, chain: _Chain) -> tuple[int, ...]:
    """The streams that take the attention's result as their rows, when nobody else reads it."""
    readers = uses.readers[chain.out.storage]
    width = chain.out.layout.numel // chain.out.shape[0]
    private = uses.is_private(chain.out, *readers) and _matrix(chain.out, chain.out.shape[-1]) is not None
    taken = all(_takes(uses.nodes[r], chain.out, width) and uses.are_still((chain.position,), chain.end, r) for r in readers)
    return tuple(readers) if private and taken else ()


def _takes(node: Node, out: Tensor, width: int) -> bool:
    plain = node.op == "stream_linear" and not node["eps"] and not node["merge"]
    once = sum(t.storage == out.storage for t in node.inputs) == 1
    row = node.inputs[0]
    return plain and once and row.storage == out.storage and row.layout.numel == out.layout.numel and row.shape[-1] == width


def _decoding(chain: _Chain, node: Node, target: Target) -> Node:
    heads, depth = chain.queries.tensor.shape[-2:]
    batch, groups, room, _ = chain.caches[0].shape
    several = (batch,) if batch > 1 else ()
    splits = max(1, min(MAX_SPLITS, -(-room // BLOCK), _busy(target, batch) // (batch * groups)))
    name = chain.out.storage.name
    parts = _new(f"{name}_parts", (splits, *several, heads, depth), DType.BF16)
    lse = _new(f"{name}_lse", (splits, *several, heads, LINE), DType.F32)
    caches = tuple(c if several else c.view(c.layout.squeeze(0)) for c in chain.caches)
    gains = [r.gain for r in (chain.queries, chain.keys) if r.gain]
    rows = (chain.queries.tensor, chain.keys.tensor, chain.values, chain.position)
    attrs = dict(scale=node["scale"], eps=chain.queries.eps, rotary=bool(chain.queries.angles), splits=splits)
    return Node(
        node.name.replace("attention", "decode_attention"),
        "decode_attention",
        (*rows, *caches, *gains, *chain.queries.angles),
        (parts, lse, *caches),
        tuple(attrs.items()),
        node.path,
    )


def _busy(target: Target, batch: int) -> int:
    """How many workers are worth having tasks. Half of them read as fast as memory gives, and parts of a batch are long to merge."""
    return target.workers if batch == 1 else target.workers // 2


def _new(name: str, shape: Sequence[int], dtype: DType) -> Tensor:
    layout = contiguous(tuple(shape))
    return Tensor(dtype, layout, Storage(name, layout.numel * dtype.itemsize, Kind.ARENA))


def _merging(node: Node, decoding: Node) -> Node:
    """The stream reads the parts instead of the attention's result. A part alone is the result."""
    parts, lse, *_ = decoding.outputs
    if parts.shape[0] == 1:
        return replace(node, inputs=(parts.view(contiguous(node.inputs[0].shape)), *node.inputs[1:]))
    attrs = tuple((key, parts.shape[0] if key == "merge" else value) for key, value in node.attrs)
    return replace(node, inputs=(parts, lse, decoding.inputs[3], *node.inputs[1:]), attrs=attrs)
