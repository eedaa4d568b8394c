"""y = what an attention found in the parts of its keys, each by the share that its keys have in the softmax: a slice for each worker."""

from collections.abc import Sequence

import numpy as np

from mkc.ir.dtype import Array, DType
from mkc.ir.graph import Node
from mkc.ir.target import Target
from mkc.ir.tiling import Axis, Range, Split, TileMap, Tiling
from mkc.ops import Op, Streaming

UNIT = 16  # elements: four words, a sector of the L2


def reference(node: Node, ins: Sequence[Array], ranges: tuple[Range, ...]) -> tuple[Array, ...]:
    """parts [S, N] and lse [S, H, LINE] of a `decode_attention`, H heads of N / H dims one after the other; gives [N]. A part without
    keys, whose lse is -inf, counts for nothing; where no part has any the result is zero."""
    parts, lse = ins
    ((lo, hi),), depth = ranges, _depth(node)
    return (merged(parts, lse[:, np.arange(lo, hi) // depth - lo // depth, 0]),)


def merged(parts: Array, lse: Array) -> Array:
    """Each part [S, ...] by the share that its keys, of lse [S, ...], have in the softmax; rounded as an attention's result is."""
    top = lse.max(axis=0, keepdims=True)
    weights = np.exp2(lse - np.where(np.isneginf(top), 0, top))
    total = weights.sum(axis=0, keepdims=True)
    return DType.BF16.rounded((weights / np.where(total == 0, 1, total) * parts).sum(axis=0))


def tile(node: Node, target: Target) -> Tiling:
    parts, lse = node.inputs
    axis = Axis(parts.shape[1], min(target.workers, -(-parts.shape[1] // UNIT)), UNIT)
    imaps = (TileMap(parts, (None, Split(0))), TileMap(lse, (None, Split(0, share=_depth(node)), None)))
    return Tiling((axis,), imaps, (TileMap(node.output, (Split(0),)),), pinned=True)


def flops(node: Node) -> float:
    return 2.0 * node.inputs[0].layout.numel


def _depth(node: Node) -> int:
    """Of a head."""
    parts, lse = node.inputs
    return parts.shape[1] // lse.shape[1]


def arguments(node: Node, tiling: Tiling) -> tuple[str, ...]:
    splits, heads, _ = node.inputs[1].shape
    return str(splits), str(heads), str(_depth(node))


def input_bytes(node: Node) -> int:
    return 0


STREAMING = Streaming(arguments, input_bytes, computes=False)
OP = Op("stream_merge", "StreamMerge", tile, reference, flops=flops, streaming=STREAMING, ranged=True)
