"""Graph -> chains: an attention of a position a sequence with all that leads to it, when it is spelled as we know it."""

from dataclasses import dataclass

from mkc.ir.dtype import DType
from mkc.ir.graph import Tensor
from mkc.ops._streaming import MOST_ROWS
from mkc.ops.attention import pages
from mkc.ops.decode_attention import shares
from mkc.passes._attention_appends import append_of, append_to_pages, table_of
from mkc.passes._attention_rows import UNIT, Rows, agree, heads_of, rows_of
from mkc.passes._uses import Uses

DEEPEST = 256  # of a head


@dataclass(frozen=True, slots=True)
class Chain:
    """What becomes one `decode_attention`."""

    queries: Rows
    keys: Rows
    values: Tensor
    caches: tuple[Tensor, Tensor]
    table: tuple[Tensor, ...]  # [N], or [B, N], where they are pools of pages
    position: Tensor
    out: Tensor  # of the attention
    end: int  # the node that writes it
    absorbed: tuple[int, ...]


def chain_of(uses: Uses, number: int) -> Chain | None:
    """All that leads to an attention of one position, when it is spelled as we know it."""
    node = uses.nodes[number]
    q, k, v, *rest = node.inputs
    table, rest = (tuple(rest[:1]), rest[1:]) if pages(node) else ((), rest)
    end = _end(uses, number)
    if end is None or len(rest) != 1 + (node["parts"] != 1) or not _fits(q, k, v):
        return None
    found = [append_to_pages(uses, c, table[0], rest[0], number) if table else append_of(uses, c, rest[0], number) for c in (k, v)]
    appends = [each for each in found if each]
    if len(appends) < 2:
        return None
    first, second = appends
    queries, keys = rows_of(uses, q, number, q.shape[0]), rows_of(uses, first.source, first.number, q.shape[0])
    values = heads_of(second.source, v.shape[3], q.shape[0])
    if queries is None or keys is None or values is None or not agree(queries, keys):
        return None
    read = (*queries.read, *keys.read, (values, second.number), *((a.position, a.number) for a in (first, second)))
    read = (*read, *first.read, *second.read)
    if not all(uses.are_still((tensor,), by, end) for tensor, by in read):
        return None
    absorbed = (*queries.absorbed, *keys.absorbed, first.number, second.number, number)
    out = uses.nodes[end].output
    lines = tuple(table_of(t, q.shape[0]) for t in table)
    chain = Chain(queries, keys, values, (first.cache, second.cache), lines, first.position, out, end, absorbed)
    return chain if q.shape[0] == 1 or _are_published(uses, chain) else None


def _are_published(uses: Uses, chain: Chain) -> bool:
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
