"""y[b, n] = Expr(sum_k x'[b, k] w[n, k], ...) for a few rows x', which are x, its norm or merged attention: a stream of weights."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from mkc.ir.dtype import Array
from mkc.ir.expr import Const
from mkc.ir.graph import Node, Tensor
from mkc.ir.program import Tiles
from mkc.ir.target import Target
from mkc.ir.tiling import Axis, Range, Split, TileMap, Tiling, whole
from mkc.ops import Op, Streaming
from mkc.ops._epilogue import epilogue
from mkc.ops._functions import cpp, evaluate
from mkc.ops._streaming import (
    COMPUTE_WARPS,
    FRAGMENT_DEPTH,
    HELD,
    MOST_TILES,
    SUM_BYTES,
    Passage,
    epsilon,
    fragments,
    norm,
    offset,
    passage_of,
    tiles_abreast,
    truth,
)
from mkc.ops._streaming import TILE_ROWS as ROWS
from mkc.ops.stream_merge import merged


def reference(node: Node, ins: Sequence[Array], ranges: tuple[Range, ...]) -> tuple[Array, ...]:
    """x [B, K], or with `merge`, of one row, the parts [S, H, D] of a `decode_attention`; gain [K] if `eps`; shift [K] if
    `shifted`; residual [1, K] and its gain [K] if `post_eps`; lse [S, H, 16] and position [1] if `merge`; weights [N_i, K]; then
    further operands [B, N] of the epilogue.

    With `eps` x' = x / sqrt(mean(x^2) + eps) * (gain + offset) + shift, of x less its mean if `centred`. With `post_eps`, of
    one row, the x in it is residual + x / sqrt(mean(x^2) + post_eps) * (its gain + post_offset). The weights are
    one below the other, and the epilogue's first operand is their product with x'; a further one comes in as many pieces
    [B, N_i]. When `gated`, they are two and lie side by side: its first two operands.

    With `best` every so many outputs leave only an entry of [P, 2], or [B, P, 2] of several rows: the best of them, and the
    bits of where it stands.

    When `halved`, the weights are two that look gated, but both are of the same outputs: the one meets the first half of
    x [1, K], the other the second, and the epilogue's first operand is the sum of both.
    """
    ((lo, hi),) = ranges
    begin = first_weight(node)
    end = begin + node.integer("weights")
    x, stacked = _row(node, ins), _stacked(node, ins[begin:end])
    sums = [x @ w[lo:hi].T for w in stacked]
    others = [np.concatenate(ins[end:], axis=1)[:, lo:hi]] if in_pieces(node) else ins[end:]
    y = np.broadcast_to(evaluate(epilogue(node), [*sums, *others]), sums[0].shape)
    if not best(node):
        return (y,)
    entries = np.stack([_entry(row, lo) for row in y])
    return (entries if batch(node) > 1 else entries[0],)


def _stacked(node: Node, ws: Sequence[Array]) -> Sequence[Array]:
    """The weights of each of the epilogue's first operands."""
    if node["gated"] and not node["halved"]:
        return ws
    return [np.concatenate(ws, axis=1 if node["halved"] else 0)]


def _entry(y: Array, first: int) -> Array:
    """[1, 2]; the first of equals, and NaN before everything."""
    place = np.argmax(y)
    return np.array([[y[place], np.int32(first + place).view(np.float32)]], np.float32)


def _row(node: Node, ins: Sequence[Array]) -> Array:
    """x' [B, K]."""
    x, eps = ins[0], epsilon(node)
    if node["merge"]:
        x = merged(x, ins[first_weight(node) - 2][..., 0, None]).reshape(1, -1)
    if post_epsilon(node):
        scale = np.sqrt(np.mean(np.square(x), axis=-1, keepdims=True) + np.float32(post_epsilon(node)))
        x = ins[2] + x / scale * (ins[3] + np.float32(node.number("post_offset")))
    if eps:
        x = x - np.mean(x, axis=-1, keepdims=True) if node["centred"] else x
        scale = np.sqrt(np.mean(np.square(x), axis=-1, keepdims=True) + np.float32(eps))
        x = x / scale * (ins[1] + offset(node))
    return x + ins[2] if node["shifted"] else x


def tile(node: Node, target: Target) -> Tiling:
    """One share of the outputs for each worker, always the same worker, so that its weights are one stream."""
    n, unit = _outputs(node), best(node) or _tile_outputs(node) * node.integer("abreast")
    axis = Axis(n, -(-n // unit) if best(node) else min(target.workers, -(-n // unit)), unit)
    columns = (None, Split(0))
    entry = (Split(0, share=unit), None)
    made = columns if not best(node) else (None, *entry) if batch(node) > 1 else entry
    imaps = (
        *map(whole, node.inputs[: first_weight(node)]),
        *(TileMap(w, (None, None), 1 / axis.parts) for w in weights(node)),
        *(replace(whole(t), touched=1 / axis.parts) if in_pieces(node) else TileMap(t, columns) for t in extras(node)),
    )
    return Tiling((axis,), imaps, (TileMap(node.output, made),), pinned=True)


def flops(node: Node) -> float:
    return batch(node) * sum(2.0 * w.layout.numel for w in weights(node))


def weights(node: Node) -> tuple[Tensor, ...]:
    """W_i [N_i, K]."""
    begin = first_weight(node)
    return node.inputs[begin : begin + node.integer("weights")]


def extras(node: Node) -> tuple[Tensor, ...]:
    """The epilogue's further operands, [B, N] each, or the pieces of the only one."""
    return node.inputs[first_weight(node) + node.integer("weights") :]


def first_weight(node: Node) -> int:
    """How many inputs stand before the weights."""
    return 1 + (epsilon(node) > 0) + bool(node["shifted"]) + 2 * (post_epsilon(node) > 0) + 2 * bool(node["merge"])


def residual(node: Node) -> tuple[Tensor, ...]:
    """What the norm of x is added to before the sum is normalised, [1, K], if anything."""
    return node.inputs[2:3] if post_epsilon(node) else ()


def post_epsilon(node: Node) -> float:
    """0 when x is normalised as it is, or not at all."""
    return node.number("post_eps")


def in_pieces(node: Node) -> bool:
    """True when the epilogue has one further operand, in as many pieces as there are weights one below the other."""
    return not node["gated"] and node.integer("weights") > 1 and len(extras(node)) > 0


def batch(node: Node) -> int:
    """B."""
    out = node.output
    return out.shape[0] if not best(node) or out.layout.rank == 3 else 1


def best(node: Node) -> int:
    """How many outputs share an entry, a task's; 0 when all are stored."""
    return node.integer("best")


def _outputs(node: Node) -> int:
    """N."""
    counts = [w.shape[0] for w in weights(node)]
    return counts[0] if node["gated"] else sum(counts)


def abreast(node: Node, target: Target) -> int:
    """How many tiles are to pass side by side. Of several rows none do."""
    return 1 if batch(node) > 1 else tiles_abreast(_depth(node), _tiles(node), target.workers)


def most_read(node: Node, target: Target) -> tuple[int, int]:
    """Fragments of the worker with the largest share, and of all."""
    beside = node.integer("abreast")
    count, together = fragments(_depth(node), beside), -(-_tiles(node) // beside)
    return -(-together // target.workers) * count, together * count


def _tiles(node: Node) -> int:
    return -(-_outputs(node) // _tile_outputs(node))


def passages(node: Node, tiling: Tiling) -> Sequence[Tiles]:
    """The first tile, how many, how deep they are, and their order."""
    outputs, passing = _tile_outputs(node), _passing(node)
    order = passing.fragments, passing.chunk, passing.group, node.integer("abreast")
    return [(begin // outputs, -(-end // outputs) - begin // outputs, *order) for ((begin, end),) in tiling.ranges()]


def _tile_outputs(node: Node) -> int:
    return ROWS // 2 if node["gated"] else ROWS


def _passing(node: Node) -> Passage:
    depth = _depth(node)
    if batch(node) > 1:
        return passage_of(batch(node), depth, _tile_outputs(node))
    count = fragments(depth, node.integer("abreast"))
    return Passage(count, count, MOST_TILES, 2 * FRAGMENT_DEPTH * count // node.integer("abreast"))


def _depth(node: Node) -> int:
    """Of a tile: half of K where it is halved."""
    return weights(node)[0].shape[1]


def arguments(node: Node, tiling: Tiling) -> tuple[str, ...]:
    passing, beside = _passing(node), node.integer("abreast")
    most = -(-tiling.grid[0].longest // (_tile_outputs(node) * beside))
    numbers = (most, passing.fragments, *(() if batch(node) > 1 else (beside,)), _depth(node))
    if batch(node) > 1:
        several = map(str, (best(node), batch(node), passing.chunk, passing.group))
        return (cpp(epilogue(node)), *norm(node), *map(str, numbers), truth(in_pieces(node)), truth(node["gated"]), *several)
    merge = map(str, (node["merge"], _merged_heads(node), best(node)))
    flags = map(truth, (node["centred"], node["shifted"], in_pieces(node), node["gated"] and not node["halved"]))
    return (cpp(epilogue(node)), *norm(node), *map(str, numbers), *flags, *merge, _rows(node))


def product(node: Node, tiles: int) -> str:
    """Of few tiles the compiler knows how many there are; of more the loop is the same for every task of that depth."""
    passing, beside = _passing(node), node.integer("abreast")
    known, whole = -(-tiles // beside), passing.chunk == passing.fragments
    count = 0 if whole and known * passing.fragments > HELD else known
    if batch(node) > 1:
        return f"ops::RowsProduct<{count}, {passing.fragments}, {passing.chunk}, {batch(node)}, {passing.group}>"
    two = post_epsilon(node) > 0 or node["halved"]
    merged = (_depth(node), passing.fragments, COMPUTE_WARPS // beside, _merged_heads(node), node["merge"])
    row = f", MergedRow<{', '.join(map(str, merged))}>" if node["merge"] else ""
    return f"ops::TilesProduct<{count}, {passing.fragments}, {beside}, {truth(two)}{row}>"


def _merged_heads(node: Node) -> int:
    return node.inputs[0].shape[-2] if node["merge"] else 0


def _rows(node: Node) -> str:
    """What meets the weights as a row, as a type: x, its halves, or a residual and what is known of the norm of x."""
    if node["halved"]:
        return "ops::Halves"
    if not post_epsilon(node):
        return "ops::NoPostNorm"
    return f"ops::PostNorm<{cpp(Const(post_epsilon(node)))}, {cpp(Const(node.number('post_offset')))}>"


def body(node: Node) -> tuple[str, str] | None:
    """Several rows have one of their own."""
    return ("stream_rows", "StreamRows") if batch(node) > 1 else None


def input_bytes(node: Node) -> int:
    """Of shared memory: the row, padded with zeros; of several as many as fit, and their sums. A residual, or half of a row, is a row
    of its own, behind which lie its sums, and what four talking warps know of four norms."""
    passing, two = _passing(node), post_epsilon(node) > 0 or node["halved"]
    return 2 * passing.input_bytes + MOST_TILES * SUM_BYTES + 64 if two else passing.input_bytes


def surely(node: Node, tiling: Tiling) -> Mapping[TileMap, Sequence[int]]:
    """Of attention's parts only the first, since splits without keys are not looked at."""
    parts = (node.inputs[0], node.inputs[first_weight(node) - 2]) if node["merge"] else ()
    return {whole(_first(m.tensor)) if m.tensor in parts else m: range(tiling.size) for m in tiling.imaps}


def _first(tensor: Tensor) -> Tensor:
    """Its first index alone."""
    return tensor.view(replace(tensor.layout, shape=(1, *tensor.shape[1:])))


STREAMING = Streaming(arguments, input_bytes, weights, passages, product=product, surely=surely, body=body)
OP = Op("stream_linear", "StreamLinear", tile, reference, flops=flops, streaming=STREAMING, ranged=True)
