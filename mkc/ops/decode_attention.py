"""One query position against a cache of keys and values, which takes in the position's own: the keys are shared out to splits.

The cache lies together, or in pages of whole blocks of keys.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from mkc.ir.dtype import Array, DType
from mkc.ir.expr import Const
from mkc.ir.graph import Node
from mkc.ir.target import Target
from mkc.ir.tiling import Axis, Range, Split, TileMap, Tiling, whole
from mkc.ops import Op, Streaming
from mkc.ops._functions import cpp
from mkc.ops._streaming import epsilon, norm, offset

POSITION = 3  # its place among the inputs
BLOCK = 128  # neighbouring keys that go to one split
LINE = 16  # equal words of lse: a line of memory for each head, or whoever merges would all wait for the same few lines
MOST_HEADS = 8  # of q in a task: rows of a fragment
LOG2E = 1.4426950408889634


def reference(node: Node, ins: Sequence[Array], ranges: tuple[Range, ...]) -> tuple[Array, ...]:
    """q [H, D], k and v [KV, D], position [1], caches [KV, T, D]; q_gain and k_gain [D] if `eps`; cos and sin [R] if the
    first `rotary` = R dims are turned. Gives parts [S, H, D], lse [S, H, LINE] and the caches, in which k and v now stand
    at the position.

    The keys 0..position, or the last `window` of them, are dealt out to S splits in blocks. A part is the mean of its
    split's values by softmax, lse the binary logarithm of the sum of 2^score, where score = scale log2(e) q k. A split
    without keys gives zeros and -inf. Gains are added to `offset`.

    Several sequences stand in a dimension of their own: of B the first of q, k, v, position, caches, cos and sin, and the
    second of parts [S, B, H, D] and lse [S, B, H, LINE].

    With `pages` = N the caches are pools [P, KV, R, D] that sequences share, and a table [N], or [B, N], follows them: key t
    is in row t % R of page table[t // R]. A number may count from the end; of a page outside of the pool the edge is read, and
    nothing is written.
    """
    if pages(node):
        return _attended_in_pages(node, ins, ranges)
    if batch(node) == 1:
        return _attended(node, ins, ranges[1])
    tables = len(ins) - 2 * bool(node["rotary"])
    alone = [x if 6 <= i < tables or i == POSITION else x[0] for i, x in enumerate(ins)]  # a task is of one sequence
    parts, lse, keys, values = _attended(node, alone, ranges[2])
    return parts[:, None], lse[:, None], keys[None], values[None]


def _attended_in_pages(node: Node, ins: Sequence[Array], ranges: tuple[Range, ...]) -> tuple[Array, ...]:
    """As of caches that are put together from the pages of the task's sequence."""
    q, k, v, position, *pools, table = ins[:7]
    count, size = pools[0].shape[0], pools[0].shape[2]
    numbers = np.where(table < 0, table + count, table).reshape(-1)
    inside = np.clip(numbers, 0, count - 1)
    caches = [pool[inside].swapaxes(0, 1).reshape(1, pool.shape[1], -1, pool.shape[3]) for pool in pools]
    caches = caches if batch(node) > 1 else [cache[0] for cache in caches]
    parts, lse, *caches = reference(node.with_attrs(pages=0), (q, k, v, position, *caches, *ins[7:]), ranges)
    page, row = divmod(int(position[0]), size)
    if not (0 <= page < len(numbers) and 0 <= numbers[page] < count):
        return parts, lse, *pools
    written = [pool.copy() for pool in pools]
    for pool, cache in zip(written, caches, strict=True):
        pool[numbers[page], :, row] = cache[..., position[0], :]
    return parts, lse, *written


def _attended(node: Node, ins: Sequence[Array], range_: Range) -> tuple[Array, ...]:
    q, k, v, (position,), keys, values, *tables = ins
    gains, angles = (tables[:2], tables[2:]) if epsilon(node) else ((None, None), tables)
    q, k = (_turned(_normed(node, x, gain), angles) for x, gain in zip((q, k), gains, strict=True))
    keys, values = keys.copy(), values.copy()
    if 0 <= position < keys.shape[1]:
        keys[:, position], values[:, position] = k, v
    scale = np.float32(node.number("scale") * LOG2E)
    scores = np.einsum("hgd,htd->hgt", q.reshape(len(keys), -1, q.shape[-1]), keys) * scale
    found = [_split(node, scores, values, position, split) for split in range(*range_)]
    parts, lse = (np.stack(part) for part in zip(*found, strict=True))
    lse = np.repeat(lse.reshape(len(found), len(q), 1), LINE, axis=2)
    return parts.reshape(len(found), *q.shape), lse, keys, values


def _normed(node: Node, x: Array, gain: Array | None) -> Array:
    if gain is None:
        return x
    scale = np.sqrt(np.mean(np.square(x), axis=-1, keepdims=True) + np.float32(epsilon(node)))
    return DType.BF16.rounded(x / scale * (gain + offset(node)))


def _turned(x: Array, angles: Sequence[Array]) -> Array:
    if not angles:
        return x
    cos, sin = angles
    x, rest = np.split(x, [len(cos)], axis=-1)
    first, second = np.split(x, 2, axis=-1)
    turned = DType.BF16.rounded(x * cos + np.concatenate([-second, first], -1) * sin)
    return np.concatenate([turned, rest], axis=-1)


def _split(node: Node, scores: Array, values: Array, position: int, split: int) -> tuple[Array, Array]:
    """[KV, G, D] and [KV, G] of one split's keys."""
    keys = np.arange(scores.shape[-1])
    first = min(position, len(keys)) - node.integer("window") + 1 if node["window"] else 0
    seen = (first <= keys) & (keys <= position)
    mine = seen & (keys // BLOCK % splits(node) == split)
    if not mine.any():
        return np.zeros((*scores.shape[:2], values.shape[-1]), np.float32), np.full(scores.shape[:2], -np.inf, np.float32)
    scores = scores[..., mine]
    top = scores.max(axis=-1, keepdims=True)
    weights = np.exp2(scores - top)
    total = weights.sum(axis=-1, keepdims=True)
    return weights @ values[:, mine] / total, (top + np.log2(total))[..., 0]


def tile(node: Node, target: Target) -> Tiling:
    """A task for each sequence, each split and at most 8 heads that share keys. One of those writes the cache, where no
    other looks."""
    q, k, v, position, keys, values, *rest = node.inputs
    tables, rest = (rest[:1], rest[1:]) if pages(node) else ([], rest)
    gains, angles = (rest[:2], rest[2:]) if epsilon(node) else ([], rest)
    tasks, count = k.shape[-2] * _shares(node), splits(node)
    several = [Split(0)] if batch(node) > 1 else []
    first = len(several)
    head, query, split = Split(first, share=_shares(node)), Split(first, each=q.shape[-2] // tasks), Split(first + 1)
    room = keys.shape[-2] * max(1, pages(node))
    rows = keys.shape[-2] * keys.shape[0] if tables else room  # that the box of a task has
    share = min(room, node.integer("window") or room) / rows / count
    lines = (None, head, None, None) if tables else (*several, head, None, None)
    caches = [TileMap(cache, lines, share) for cache in (keys, values)]
    imaps = [TileMap(q, (*several, query, None)), TileMap(k, (*several, head, None)), TileMap(v, (*several, head, None))]
    imaps += [TileMap(position, tuple(several) or (None,)), *caches]
    imaps += [*(TileMap(table, (*several, None)) for table in tables), *map(whole, gains)]
    imaps += [TileMap(table, (*several, None)) for table in angles]
    parts, lse, *_ = node.outputs
    omaps = [TileMap(parts, (split, *several, query, None)), TileMap(lse, (split, *several, query, None))]
    omaps += [TileMap(cache, lines, 1 / rows) for cache in (keys, values)]
    grid = (*(Axis(batch(node), batch(node)) for _ in several), Axis(tasks, tasks), Axis(count, count))
    return Tiling(grid, tuple(imaps), tuple(omaps), pinned=True, apart=True)


def batch(node: Node) -> int:
    """B."""
    q = node.inputs[0]
    return q.shape[0] if q.layout.rank == 3 else 1


def shares(heads: int, groups: int) -> int:
    """How many tasks share the keys of a head, since one has at most 8 heads of q; 0 when those do not come out even."""
    group = heads // groups
    return next((n for n in range(1, group + 1) if group % n == 0 and group // n <= MOST_HEADS), 0)


def _shares(node: Node) -> int:
    return shares(node.inputs[0].shape[-2], node.inputs[1].shape[-2])


def flops(node: Node) -> float:
    q, keys = node.inputs[0], node.inputs[4]
    return 4.0 * q.layout.numel * keys.shape[-2] * max(1, pages(node))


def pages(node: Node) -> int:
    """How many a sequence has, whose caches are in pages; 0 where they are not."""
    return node.integer("pages")


def splits(node: Node) -> int:
    """S: into how many parts the keys are shared out."""
    return node.integer("splits")


def arguments(node: Node, tiling: Tiling) -> tuple[str, ...]:
    *_, heads, depth = node.inputs[0].shape
    numbers = (node.integer("rotary"), splits(node), node.integer("window"), _shares(node), heads, depth, pages(node), batch(node))
    return (cpp(Const(node.number("scale"))), *norm(node), *map(str, numbers))


def input_bytes(node: Node) -> int:
    """Of shared memory: rows of q, k and v, what each of 8 warps found (sums, the highest score, the total), a weight."""
    (heads, depth), kv_heads = node.inputs[0].shape[-2:], node.inputs[1].shape[-2]
    group = heads // kv_heads // _shares(node)
    return 10 * (128 * -(-depth // 64) + 16) + group * (8 * (4 * depth + 8) + 16)


def surely(node: Node, tiling: Tiling) -> Mapping[TileMap, Sequence[int]]:
    """The first split has keys at every position; others look at q, k and v only when they have some."""
    return dict.fromkeys(tiling.imaps, range(0, tiling.size, splits(node)))


STREAMING = Streaming(arguments, input_bytes, surely=surely, position=POSITION)
OP = Op("decode_attention", "DecodeAttention", tile, reference, flops=flops, streaming=STREAMING, ranged=True)
