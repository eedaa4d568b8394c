"""Graph -> Graph. Attention of a position a sequence, with norms, rotations and appends before it, becomes one decode_attention."""

from dataclasses import replace

from mkc.ir.dtype import DType
from mkc.ir.graph import Graph, Node, Tensor, scratch
from mkc.ir.layout import contiguous
from mkc.ir.target import Target
from mkc.ops.attention import pages, window
from mkc.ops.decode_attention import BLOCK, LINE, shares
from mkc.passes._attention_chain import Chain, chain_of
from mkc.passes._attention_rows import matrix_of
from mkc.passes._uses import Uses, rewritten


def attend(graph: Graph, target: Target) -> Graph:
    uses = Uses(graph)
    changes: dict[int, Node | None] = {}
    for number, node in enumerate(graph.nodes):
        chain = chain_of(uses, number) if node.op == "attention" else None
        readers = _readers(uses, chain) if chain else ()
        if chain and readers:
            changes |= dict.fromkeys(chain.absorbed)
            changes |= _attending(chain, {r: uses.nodes[r] for r in readers}, node, target)
    return rewritten(graph, changes)


def _readers(uses: Uses, chain: Chain) -> tuple[int, ...]:
    """The streams that take the attention's result as their rows, when nobody else reads it."""
    readers = uses.readers[chain.out.storage]
    width = chain.out.layout.numel // chain.out.shape[0]
    matrix = matrix_of(chain.out, chain.out.shape[-1])
    private = uses.is_private(chain.out, *readers) and matrix is not None and matrix.layout.is_contiguous
    taken = all(_takes(uses.nodes[r], chain.out, width) and uses.are_still((chain.position,), chain.end, r) for r in readers)
    return tuple(readers) if private and taken else ()


def _takes(node: Node, out: Tensor, width: int) -> bool:
    plain = node.op == "stream_linear" and not node["eps"] and not node["merge"]
    once = sum(t.storage == out.storage for t in node.inputs) == 1
    row = node.inputs[0]
    return plain and once and row.storage == out.storage and row.layout.numel == out.layout.numel and row.shape[-1] == width


def _attending(chain: Chain, readers: dict[int, Node], node: Node, target: Target) -> dict[int, Node]:
    """What the chain becomes, by the numbers of the nodes whose places are taken. The parts of one sequence are merged by each reader, for
    itself, unless there are many; those of several are long, so that each worker merges a slice for all. Of several sequences a part
    alone is the result."""
    (heads, depth), batch, splits = chain.queries.tensor.shape[-2:], chain.out.shape[0], _splits(chain, target)
    several = (batch,) if batch > 1 else ()
    name, shape = chain.out.storage.name, (splits, *several, heads, depth)
    lse = scratch(f"{name}_lse", (*shape[:-1], LINE), DType.F32)
    if several and splits == 1:
        return {chain.end: _decoding(chain, node, chain.out.view(contiguous(shape)), lse)}
    parts = scratch(f"{name}_parts", shape, DType.BF16)
    decoding = _decoding(chain, node, parts, lse)
    if several or splits >= target.choices.merge_from:
        return {max(n for n in chain.absorbed if n < chain.end): decoding, chain.end: _merged(chain, node, parts, lse)}
    return {chain.end: decoding} | {number: _merging(reader, decoding) for number, reader in readers.items()}


def _splits(chain: Chain, target: Target) -> int:
    heads, batch = chain.queries.tensor.shape[-2], chain.out.shape[0]
    _, groups, room, _ = chain.caches[0].shape
    room *= chain.table[0].shape[-1] if chain.table else 1
    lines = batch * groups * shares(heads, groups)
    return max(1, min(target.choices.splits, -(-room // BLOCK), _busy(target, batch) // lines))


def _busy(target: Target, batch: int) -> int:
    """How many workers are to have tasks."""
    return target.workers if batch == 1 else target.workers // target.choices.one_in


def _decoding(chain: Chain, node: Node, parts: Tensor, lse: Tensor) -> Node:
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


def _merged(chain: Chain, node: Node, parts: Tensor, lse: Tensor) -> Node:
    splits, width = parts.shape[0], chain.out.layout.numel
    inputs = (parts.view(contiguous((splits, width))), lse.view(contiguous((splits, lse.layout.numel // splits // LINE, LINE))))
    name, out = node.name.replace("attention", "stream_merge"), chain.out.view(contiguous((width,)))
    return Node(name, "stream_merge", inputs, (out,), (), node.path)
