"""Graph -> Graph. Attention of a position a sequence, with norms, rotations and appends before it, becomes one decode_attention."""

from dataclasses import dataclass, replace

from mkc.ir.dtype import DType
from mkc.ir.expr import Arg, Call, Const
from mkc.ir.graph import Graph, Kind, Node, Tensor, scratch
from mkc.ir.layout import Layout, contiguous
from mkc.ir.target import Target
from mkc.ops._streaming import MOST_ROWS, VECTOR
from mkc.ops.attention import pages, window
from mkc.ops.decode_attention import BLOCK, LINE, shares
from mkc.ops.rms_norm import ROUNDED, gain
from mkc.passes._uses import Uses, rewritten

UNIT, DEEPEST = 16, 256  # heads are so many units deep, as deep as that at most


def attend(graph: Graph, target: Target) -> Graph:
    uses = Uses(graph)
    changes: dict[int, Node | None] = {}
    for number, node in enumerate(graph.nodes):
        chain = _chain(uses, number) if node.op == "attention" else None
        readers = _readers(uses, chain) if chain else ()
        if chain and readers:
            changes |= dict.fromkeys(chain.absorbed)
            changes |= _attending(chain, {r: uses.nodes[r] for r in readers}, node, target)
    return rewritten(graph, changes)


@dataclass(frozen=True, slots=True)
class _Rows:
    """What became the queries, or the keys: rows [N, D], [B, N, D] of several sequences, perhaps normalised, their first R
    dims perhaps turned."""

    tensor: Tensor
    gain: Tensor | None
    offset: float  # that gains are added to
    eps: float
    angles: tuple[Tensor, ...]  # cos and sin [R], or [B, R]
    read: tuple[tuple[Tensor, int], ...]  # each tensor and the node that read it
    absorbed: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class _Append:
    """Where a cache [B, KV, T, D], or a pool [P, KV, R, D], takes in its rows."""

    number: int
    position: Tensor
    source: Tensor
    cache: Tensor
    read: tuple[tuple[Tensor, int], ...] = ()  # each tensor that said which pages, and the node that read it


@dataclass(frozen=True, slots=True)
class _Chain:
    queries: _Rows
    keys: _Rows
    values: Tensor
    caches: tuple[Tensor, Tensor]
    table: tuple[Tensor, ...]  # [N], or [B, N], where they are pools of pages
    position: Tensor
    out: Tensor  # of the attention
    end: int  # the node that writes it
    absorbed: tuple[int, ...]


def _chain(uses: Uses, number: int) -> _Chain | None:
    """All that leads to an attention of one position, when it is spelled as we know it."""
    node = uses.nodes[number]
    q, k, v, *rest = node.inputs
    table, rest = (tuple(rest[:1]), rest[1:]) if pages(node) else ((), rest)
    end = _end(uses, number)
    if end is None or len(rest) != 1 + (node["parts"] != 1) or not _fits(q, k, v):
        return None
    found = [_append_to_pages(uses, c, table[0], rest[0], number) if table else _append(uses, c, rest[0], number) for c in (k, v)]
    appends = [append for append in found if append]
    if len(appends) < 2:
        return None
    first, second = appends
    queries, keys = _rows(uses, q, number, q.shape[0]), _rows(uses, first.source, first.number, q.shape[0])
    values = _heads(second.source, v.shape[3], q.shape[0])
    if queries is None or keys is None or values is None or not _agree(queries, keys):
        return None
    read = (*queries.read, *keys.read, (values, second.number), *((a.position, a.number) for a in (first, second)))
    read = (*read, *first.read, *second.read)
    if not all(uses.are_still((tensor,), by, end) for tensor, by in read):
        return None
    absorbed = (*queries.absorbed, *keys.absorbed, first.number, second.number, number)
    out = uses.nodes[end].output
    lines = tuple(_table(t, q.shape[0]) for t in table)
    chain = _Chain(queries, keys, values, (first.cache, second.cache), lines, first.position, out, end, absorbed)
    return chain if q.shape[0] == 1 or _are_published(uses, chain) else None


def _are_published(uses: Uses, chain: _Chain) -> bool:
    """The rows of several sequences: streams make them, and nobody else reads them."""
    readers = (*chain.absorbed, *(number for _, number in (*chain.queries.read, *chain.keys.read)))
    rows = (chain.queries.tensor, chain.keys.tensor, chain.values)
    return all(uses.maker(t, "stream_linear") is not None and uses.is_private(t, *readers) for t in rows)


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
    fits = batch <= MOST_ROWS and rows == 1 and depth % UNIT == 0 and depth <= DEEPEST
    return alike and fits and heads % groups == 0 and shares(heads, groups) > 0


def _only_writer(uses: Uses, cache: Tensor, reader: int, op: str) -> int | None:
    """The node of this operator that alone writes a state, for this reader alone."""
    writers, readers = uses.writers[cache.storage], uses.readers[cache.storage]
    if cache.storage.kind is not Kind.STATE or len(writers) != 1 or {*readers} != {writers[0], reader}:
        return None
    (number,) = writers
    return number if uses.nodes[number].op == op and number < reader else None


def _append(uses: Uses, cache: Tensor, limit: Tensor, reader: int) -> _Append | None:
    """The node that writes one row a sequence into the cache, for this reader alone, where the reader's keys end."""
    number = _only_writer(uses, cache, reader, "append")
    if number is None or uses.nodes[number]["dim"] != 2 or uses.nodes[number]["wraps"]:
        return None
    index, source, whole = uses.nodes[number].inputs
    position = _positions(index, cache.shape[0])
    if position is None or position != _positions(limit, cache.shape[0]) or not uses.are_still((position,), number, reader):
        return None
    plain = _is_whole(whole) and _is_whole(cache) and whole.shape == cache.shape
    return _Append(number, position, source, whole.view(contiguous(whole.shape))) if plain else None


def _append_to_pages(uses: Uses, pool: Tensor, table: Tensor, limit: Tensor, reader: int) -> _Append | None:
    """The same of a pool whose pages are whole blocks of keys, where the row is that of the position in the reader's table."""
    number, (batch, _) = _only_writer(uses, pool, reader, "append_pages"), table.shape
    if number is None or pool.shape[2] % BLOCK or table.storage.kind.is_written:
        return None
    page, row, source, whole = uses.nodes[number].inputs
    lookup, rest = uses.maker(page, "gather"), _quotient(uses, row, "mod", pool.shape[2])
    quotient = None if lookup is None else _quotient(uses, uses.nodes[lookup].inputs[1], "floor_div", pool.shape[2])
    if lookup is None or rest is None or quotient is None or not _looks_up(uses.nodes[lookup], table, page):
        return None
    last = _positions(limit, batch)
    positions = {_positions(uses.nodes[n].inputs[0], batch) for n in (rest, quotient)}
    plain = _is_whole(whole) and _is_whole(pool) and whole.shape == pool.shape and _table(table, batch).layout.is_contiguous
    if last is None or positions != {last} or not plain or not uses.are_still((last,), min(rest, quotient), reader):
        return None
    read = ((table, lookup), (last, rest), (last, quotient))
    return _Append(number, last, source, whole.view(contiguous(whole.shape)), read)


def _quotient(uses: Uses, tensor: Tensor, fn: str, by: int) -> int | None:
    """The node that divides one tensor of integers by this number, and makes all of this one, in order."""
    number = uses.maker(tensor, "elementwise")
    if number is None or uses.nodes[number]["expr"] != Call(fn, (Arg(0), Const(by))):
        return None
    return number if _is_line(tensor) and tensor.layout.numel == uses.nodes[number].output.layout.numel else None


def _looks_up(gather: Node, table: Tensor, found: Tensor) -> bool:
    """One number of each row of the table, and nothing else is done to it."""
    whole, index = gather.inputs[:2]
    alike = whole.storage == table.storage and whole.layout.reshape(table.shape) == table.layout.reshape(table.shape)
    each = index.shape == (table.shape[0], 1, 1) and _is_line(index) and _is_line(found) and found.layout.numel == table.shape[0]
    return alike and each and gather["epilogue"] == Arg(0)


def _is_line(tensor: Tensor) -> bool:
    """Its elements are those of its storage from the first on."""
    line = tensor.layout.reshape((tensor.layout.numel,))
    return line is not None and line.offset == 0 and (tensor.layout.numel == 1 or line.strides == (1,))


def _table(table: Tensor, batch: int) -> Tensor:
    """[N] of one sequence, [B, N] of several."""
    return table if batch > 1 else table.view(table.layout.squeeze(0))


def _is_whole(tensor: Tensor) -> bool:
    return tensor.layout.is_contiguous and tensor.nbytes == tensor.storage.nbytes


def _positions(tensor: Tensor, batch: int) -> Tensor | None:
    """[B] when all integers of a sequence, along the tensor's first dimension, are one, and those of sequences neighbours."""
    steps = [s for n, s in zip(tensor.shape, tensor.layout.strides, strict=True) if n > 1]
    if batch > 1:
        neighbours = tensor.shape[0] == batch and steps[0] == 1
        steps = steps[1:] if neighbours else [1]
    alone = tensor.dtype is DType.I64 and not any(steps)
    return tensor.view(Layout((batch,), (1,), tensor.layout.offset)) if alone else None


def _rows(uses: Uses, tensor: Tensor, reader: int, batch: int) -> _Rows | None:
    depth, absorbed, angles = tensor.shape[-1], list[int](), tuple[Tensor, ...]()
    factor, offset, eps = None, 0.0, 0.0
    read = list[tuple[Tensor, int]]()
    turning = _turning(uses, tensor, reader, batch)
    if turning:
        tensor, angles, reader = turning.source, turning.angles, turning.numbers[0]
        read += [(line, turning.numbers[-1]) for line in angles]
        absorbed += turning.numbers
    number = _step(uses, tensor, reader, "rms_norm")
    scaled = gain(uses.nodes[number]) if number is not None else None
    if number is not None and scaled:
        (factor, offset), tensor, reader = scaled, uses.nodes[number].inputs[0], number
        eps = uses.nodes[number].number("eps")
        absorbed.append(number)
        cast = uses.maker(tensor, "elementwise")
        if cast is not None and uses.nodes[cast]["expr"] == Call("to_float32", (Arg(0),)):
            tensor, reader = uses.nodes[cast].inputs[0], cast
    matrix = _heads(tensor, depth, batch)
    if matrix is None or matrix.dtype is not DType.BF16 or (factor and factor.shape != (depth,)):
        return None
    return _Rows(matrix, factor, offset, eps, angles, (*read, (matrix, reader)), tuple(absorbed))


@dataclass(frozen=True, slots=True)
class _Turning:
    """The rotation of a row's first dims, all or some: what it reads, and the nodes that do it, the first reader first."""

    source: Tensor
    angles: tuple[Tensor, ...]
    numbers: tuple[int, ...]


def _turning(uses: Uses, tensor: Tensor, reader: int, batch: int) -> _Turning | None:
    number = _step(uses, tensor, reader, "rotary")
    if number is not None and (lines := _lines(uses.nodes[number], batch)):
        return _Turning(uses.nodes[number].inputs[0], lines, (number,))
    return _turning_of_some(uses, tensor, reader, batch)


def _turning_of_some(uses: Uses, tensor: Tensor, reader: int, batch: int) -> _Turning | None:
    """Two nodes fill the tensor: one turns the first dims of a source, and one copies those that follow."""
    writers = uses.writers[tensor.storage]
    if len(writers) != 2 or not uses.is_private(tensor, reader) or {uses.nodes[w].op for w in writers} != {"rotary", "elementwise"}:
        return None
    turns, copies = sorted(writers, key=lambda w: uses.nodes[w].op != "rotary")
    turned, copied, lines = uses.nodes[turns], uses.nodes[copies], _lines(uses.nodes[turns], batch)
    if not lines or copied["expr"] != Arg(0) or len(copied.inputs) != 1:
        return None
    source = _side_by_side(turned.inputs[0], copied.inputs[0])
    made = _side_by_side(turned.output, copied.output)
    alike = source and made and source.shape == made.shape and source.dtype is made.dtype is DType.BF16
    whole = made and _matrix(made, made.shape[-1]) == _matrix(tensor, tensor.shape[-1]) and made.layout.numel == tensor.layout.numel
    still = source and uses.are_still((source,), min(turns, copies), max(turns, copies))
    return _Turning(source, lines, (min(turns, copies), max(turns, copies))) if source and alike and whole and still else None


def _side_by_side(first: Tensor, then: Tensor) -> Tensor | None:
    """The tensor whose last dimension is that of the first, and then that of the other."""
    (*lead, turned), steps = first.shape, first.layout.strides
    alike = then.storage == first.storage and then.dtype is first.dtype and then.shape[:-1] == first.shape[:-1]
    same = all(n == 1 or s == t for n, s, t in zip(first.shape, steps, then.layout.strides, strict=True))
    follows = steps[-1] == 1 and then.layout.offset == first.layout.offset + turned
    layout = Layout((*lead, turned + then.shape[-1]), steps, first.layout.offset)
    return first.view(layout) if alike and same and follows else None


def _lines(rotary: Node, batch: int) -> tuple[Tensor, ...]:
    """cos and sin [R], or [B, R], of a rotation that does nothing else, and turns all rows of a sequence alike; else nothing."""
    lines = tuple(line for t in rotary.inputs[1:] if (line := _line(t, batch)) and _is_aligned(line.layout))
    alike = len(lines) == 2 and lines[0].dtype is lines[1].dtype and lines[0].shape[-1] % UNIT == 0
    return lines if alike and rotary["epilogue"] in (Arg(0), ROUNDED) else ()


def _is_aligned(layout: Layout) -> bool:
    return not any(n % VECTOR for n in (layout.offset, *layout.strides[:-1]))


def _step(uses: Uses, tensor: Tensor, reader: int, op: str) -> int | None:
    """The node of this operator that makes the tensor, row by row, for this reader alone."""
    number = uses.maker(tensor, op)
    if number is None or not uses.is_private(tensor, reader):
        return None
    depth, out = tensor.shape[-1], uses.nodes[number].output
    same = out.dtype is DType.BF16 and out.shape[-1] == depth and _matrix(tensor, depth) == _matrix(out, depth)
    return number if same and _matrix(out, depth) is not None else None


def _matrix(tensor: Tensor, depth: int) -> Tensor | None:
    """The tensor as [N, depth], when its rows lie one like the other, where vectors can be read."""
    rows = tensor.layout.numel // depth
    layout = tensor.layout.reshape((rows, depth))
    if layout is None or layout.strides[1] != 1:
        return None
    layout = replace(layout, strides=(layout.strides[0] if rows > 1 else depth, 1))
    return tensor.view(layout) if not any(n % VECTOR for n in (layout.offset, *layout.strides[:1], depth)) else None


def _heads(tensor: Tensor, depth: int, batch: int) -> Tensor | None:
    """As `_matrix`; of several sequences [B, N, depth]."""
    if batch == 1:
        return _matrix(tensor, depth)
    step = tensor.layout.strides[0]
    if tensor.shape[0] != batch or step % VECTOR:
        return None
    each = _matrix(tensor.view(tensor.layout.select(0, 0)), depth)
    return each and each.view(Layout((batch, *each.shape), (step, *each.layout.strides), tensor.layout.offset))


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
    return (queries.eps, queries.offset, queries.angles) == (keys.eps, keys.offset, keys.angles)


def _readers(uses: Uses, chain: _Chain) -> tuple[int, ...]:
    """The streams that take the attention's result as their rows, when nobody else reads it."""
    readers = uses.readers[chain.out.storage]
    width = chain.out.layout.numel // chain.out.shape[0]
    matrix = _matrix(chain.out, chain.out.shape[-1])
    private = uses.is_private(chain.out, *readers) and matrix is not None and matrix.layout.is_contiguous
    taken = all(_takes(uses.nodes[r], chain.out, width) and uses.are_still((chain.position,), chain.end, r) for r in readers)
    return tuple(readers) if private and taken else ()


def _takes(node: Node, out: Tensor, width: int) -> bool:
    plain = node.op == "stream_linear" and not node["eps"] and not node["merge"]
    once = sum(t.storage == out.storage for t in node.inputs) == 1
    row = node.inputs[0]
    return plain and once and row.storage == out.storage and row.layout.numel == out.layout.numel and row.shape[-1] == width


def _attending(chain: _Chain, readers: dict[int, Node], node: Node, target: Target) -> dict[int, Node]:
    """What the chain becomes, by the numbers of the nodes whose places are taken. The parts of one sequence are merged by each reader, for
    itself; those of several are long, so that each worker merges a slice for all. Of several sequences a part alone is the result."""
    (heads, depth), batch, splits = chain.queries.tensor.shape[-2:], chain.out.shape[0], _splits(chain, target)
    several = (batch,) if batch > 1 else ()
    name, shape = chain.out.storage.name, (splits, *several, heads, depth)
    lse = scratch(f"{name}_lse", (*shape[:-1], LINE), DType.F32)
    if several and splits == 1:
        return {chain.end: _decoding(chain, node, chain.out.view(contiguous(shape)), lse)}
    parts = scratch(f"{name}_parts", shape, DType.BF16)
    decoding = _decoding(chain, node, parts, lse)
    if several:
        return {max(n for n in chain.absorbed if n < chain.end): decoding, chain.end: _merged(chain, node, parts, lse)}
    return {chain.end: decoding} | {number: _merging(reader, decoding) for number, reader in readers.items()}


def _splits(chain: _Chain, target: Target) -> int:
    heads, batch = chain.queries.tensor.shape[-2], chain.out.shape[0]
    _, groups, room, _ = chain.caches[0].shape
    room *= chain.table[0].shape[-1] if chain.table else 1
    lines = batch * groups * shares(heads, groups)
    return max(1, min(target.choices.splits, -(-room // BLOCK), _busy(target, batch) // lines))


def _busy(target: Target, batch: int) -> int:
    """How many workers are to have tasks."""
    return target.workers if batch == 1 else target.workers // target.choices.one_in


def _decoding(chain: _Chain, node: Node, parts: Tensor, lse: Tensor) -> Node:
    several = chain.out.shape[0] > 1
    caches = tuple(c if several or chain.table else c.view(c.layout.squeeze(0)) for c in chain.caches)
    gains = [r.gain for r in (chain.queries, chain.keys) if r.gain]
    rows = (chain.queries.tensor, chain.keys.tensor, chain.values, chain.position)
    turned = chain.queries.angles[0].shape[-1] if chain.queries.angles else 0
    attrs = dict(scale=node["scale"], eps=chain.queries.eps, offset=chain.queries.offset, rotary=turned, splits=parts.shape[0])
    attrs |= dict(window=window(node), pages=pages(node))
    return Node(
        node.name.replace("attention", "decode_attention"),
        "decode_attention",
        (*rows, *caches, *chain.table, *gains, *chain.queries.angles),
        (parts, lse, *caches),
        tuple(attrs.items()),
        node.path,
    )


def _merging(node: Node, decoding: Node) -> Node:
    """The stream reads the parts instead of the attention's result."""
    parts, lse, *_ = decoding.outputs
    return replace(node.with_attrs(merge=parts.shape[0]), inputs=(parts, lse, decoding.inputs[3], *node.inputs[1:]))


def _merged(chain: _Chain, node: Node, parts: Tensor, lse: Tensor) -> Node:
    splits, width = parts.shape[0], chain.out.layout.numel
    inputs = (parts.view(contiguous((splits, width))), lse.view(contiguous((splits, lse.layout.numel // splits // LINE, LINE))))
    name, out = node.name.replace("attention", "stream_merge"), chain.out.view(contiguous((width,)))
    return Node(name, "stream_merge", inputs, (out,), (), node.path)
