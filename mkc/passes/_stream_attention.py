"""Graph -> Graph. Attention of one position, with the norms, rotations and appends before it, becomes one decode_attention."""

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

DEPTHS = (64, 128)  # of rows that the body holds
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
    """What became the queries, or the keys: rows [N, D], perhaps normalised, perhaps turned."""

    tensor: Tensor
    gain: Tensor | None
    eps: float
    angles: tuple[Tensor, ...]  # cos and sin [D]
    read: tuple[tuple[Tensor, int], ...]  # each tensor and the node that read it
    absorbed: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class _Append:
    """Where a cache [1, KV, T, D] takes in its row."""

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
    queries, keys = _rows(uses, q, number), _rows(uses, first.source, first.number)
    values = _matrix(second.source, v.shape[3])
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
    return alike and batch == rows == 1 and depth in DEPTHS and heads % groups == 0 and heads // groups <= MAX_GROUP


def _append(uses: Uses, cache: Tensor, limit: Tensor, reader: int) -> _Append | None:
    """The node that writes one row into the cache, for this reader alone, where the reader's keys end."""
    writers, readers = uses.writers[cache.storage], uses.readers[cache.storage]
    if cache.storage.kind is not Kind.STATE or len(writers) != 1 or {*readers} != {writers[0], reader}:
        return None
    (number,) = writers
    node = uses.nodes[number]
    if node.op != "append" or number > reader or node["dim"] != 2 or node["wraps"]:
        return None
    index, source, whole = node.inputs
    position = _scalar(index)
    if position is None or position != _scalar(limit) or not uses.are_still((position,), number, reader):
        return None
    plain = _is_whole(whole) and _is_whole(cache) and whole.shape == cache.shape
    return _Append(number, position, source, whole.view(contiguous(whole.shape))) if plain else None


def _is_whole(tensor: Tensor) -> bool:
    return tensor.layout.is_contiguous and tensor.nbytes == tensor.storage.nbytes


def _scalar(tensor: Tensor) -> Tensor | None:
    """[1] when all elements of the tensor of integers are one."""
    steps = [s for n, s in zip(tensor.shape, tensor.layout.strides, strict=True) if n > 1]
    alone = tensor.dtype is DType.I64 and not any(steps)
    return tensor.view(Layout((1,), (1,), tensor.layout.offset)) if alone else None


def _rows(uses: Uses, tensor: Tensor, reader: int) -> _Rows | None:
    depth = tensor.shape[-1]
    absorbed, angles, factor, eps = list[int](), tuple[Tensor, ...](), None, 0.0
    read = list[tuple[Tensor, int]]()
    number = _step(uses, tensor, reader, "rotary")
    if number is not None and uses.nodes[number]["epilogue"] in (Arg(0), ROUNDED):
        tensor, *tables = uses.nodes[number].inputs
        lines = [line for t in tables if (line := _line(t))]
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
    matrix = _matrix(tensor, depth)
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


def _single(layout: Layout) -> Layout:
    """As `reshape` gives it when there is one row."""
    return replace(layout, strides=tuple(s if n > 1 else 0 for n, s in zip(layout.shape, layout.strides, strict=True)))


def _line(tensor: Tensor) -> Tensor | None:
    """[D] when all rows of the tensor are the same one."""
    *lead, (depth, step) = zip(tensor.shape, tensor.layout.strides, strict=True)
    same = step == 1 and all(n == 1 or s == 0 for n, s in lead) and tensor.dtype in (DType.BF16, DType.F32)
    return tensor.view(Layout((depth,), (1,), tensor.layout.offset)) if same else None


def _agree(queries: _Rows, keys: _Rows) -> bool:
    """Both are normalised alike, by gains of their own, and turned alike."""
    return queries.eps == keys.eps and queries.angles == keys.angles


def _readers(uses: Uses, chain: _Chain) -> tuple[int, ...]:
    """The streams that take the attention's result as their row, when nobody else reads it."""
    readers = uses.readers[chain.out.storage]
    width = chain.out.layout.numel
    private = uses.is_private(chain.out, *readers) and _matrix(chain.out, chain.out.shape[-1]) is not None
    taken = all(_takes(uses.nodes[r], chain.out, width) and uses.are_still((chain.position,), chain.end, r) for r in readers)
    return tuple(readers) if private and taken else ()


def _takes(node: Node, out: Tensor, width: int) -> bool:
    plain = node.op == "stream_linear" and not node["eps"] and not node["merge"]
    once = sum(t.storage == out.storage for t in node.inputs) == 1
    return plain and once and node.inputs[0].storage == out.storage and node.inputs[0].layout.numel == width


def _decoding(chain: _Chain, node: Node, target: Target) -> Node:
    heads, depth = chain.queries.tensor.shape
    groups, room = chain.caches[0].shape[1:3]
    splits = max(1, min(MAX_SPLITS, -(-room // BLOCK), target.workers // groups))
    name = chain.out.storage.name
    parts = _new(f"{name}_parts", (splits, heads, depth), DType.BF16)
    lse = _new(f"{name}_lse", (splits, heads, LINE), DType.F32)
    caches = tuple(c.view(c.layout.squeeze(0)) for c in chain.caches)
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


def _new(name: str, shape: Sequence[int], dtype: DType) -> Tensor:
    layout = contiguous(tuple(shape))
    return Tensor(dtype, layout, Storage(name, layout.numel * dtype.itemsize, Kind.ARENA))


def _merging(node: Node, decoding: Node) -> Node:
    """The stream reads the parts instead of the attention's result."""
    parts, lse, *_ = decoding.outputs
    attrs = tuple((key, parts.shape[0] if key == "merge" else value) for key, value in node.attrs)
    return replace(node, inputs=(parts, lse, decoding.inputs[3], *node.inputs[1:]), attrs=attrs)
