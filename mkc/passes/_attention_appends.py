"""Graph -> the appends before an attention: where each cache, or pool of pages, takes in a row a sequence, at the end of its keys."""

from dataclasses import dataclass

from mkc.ir.dtype import DType
from mkc.ir.expr import Arg, Call, Const
from mkc.ir.graph import Kind, Node, Tensor
from mkc.ir.layout import Layout, contiguous
from mkc.ops.decode_attention import BLOCK
from mkc.passes._uses import Uses


@dataclass(frozen=True, slots=True)
class Append:
    """Where a cache [B, KV, T, D], or a pool [P, KV, R, D], takes in its rows."""

    number: int
    position: Tensor
    source: Tensor
    cache: Tensor
    read: tuple[tuple[Tensor, int], ...] = ()  # each tensor that said which pages, and the node that read it


def append_of(uses: Uses, cache: Tensor, limit: Tensor, reader: int) -> Append | None:
    """The node that writes one row a sequence into the cache, for this reader alone, where the reader's keys end."""
    number = _only_writer(uses, cache, reader, "append")
    if number is None or uses.nodes[number]["dim"] != 2 or uses.nodes[number]["wraps"]:
        return None
    index, source, whole = uses.nodes[number].inputs
    position = _positions(index, cache.shape[0])
    if position is None or position != _positions(limit, cache.shape[0]) or not uses.are_still((position,), number, reader):
        return None
    plain = _is_whole(whole) and _is_whole(cache) and whole.shape == cache.shape
    return Append(number, position, source, whole.view(contiguous(whole.shape))) if plain else None


def append_to_pages(uses: Uses, pool: Tensor, table: Tensor, limit: Tensor, reader: int) -> Append | None:
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
    plain = _is_whole(whole) and _is_whole(pool) and whole.shape == pool.shape and table_of(table, batch).layout.is_contiguous
    if last is None or positions != {last} or not plain or not uses.are_still((last,), min(rest, quotient), reader):
        return None
    read = ((table, lookup), (last, rest), (last, quotient))
    return Append(number, last, source, whole.view(contiguous(whole.shape)), read)


def _only_writer(uses: Uses, cache: Tensor, reader: int, op: str) -> int | None:
    """The node of this operator that alone writes a state, for this reader alone."""
    writers, readers = uses.writers[cache.storage], uses.readers[cache.storage]
    if cache.storage.kind is not Kind.STATE or len(writers) != 1 or {*readers} != {writers[0], reader}:
        return None
    (number,) = writers
    return number if uses.nodes[number].op == op and number < reader else None


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


def _positions(tensor: Tensor, batch: int) -> Tensor | None:
    """[B] when all integers of a sequence, along the tensor's first dimension, are one, and those of sequences neighbours."""
    steps = [s for n, s in zip(tensor.shape, tensor.layout.strides, strict=True) if n > 1]
    if batch > 1:
        neighbours = tensor.shape[0] == batch and steps[0] == 1
        steps = steps[1:] if neighbours else [1]
    alone = tensor.dtype is DType.I64 and not any(steps)
    return tensor.view(Layout((batch,), (1,), tensor.layout.offset)) if alone else None


def table_of(table: Tensor, batch: int) -> Tensor:
    """[N] of one sequence, [B, N] of several."""
    return table if batch > 1 else table.view(table.layout.squeeze(0))


def _is_line(tensor: Tensor) -> bool:
    """Its elements are those of its storage from the first on."""
    line = tensor.layout.reshape((tensor.layout.numel,))
    return line is not None and line.offset == 0 and (tensor.layout.numel == 1 or line.strides == (1,))


def _is_whole(tensor: Tensor) -> bool:
    return tensor.layout.is_contiguous and tensor.nbytes == tensor.storage.nbytes
