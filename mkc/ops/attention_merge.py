"""out[d] = sum_p w[p] sums[p, d] / sum_p w[p] total[p]: the parts that an attention was shared out in, put together."""

from collections.abc import Sequence

import numpy as np

from mkc.ir.cost import cut
from mkc.ir.dtype import Array
from mkc.ir.graph import Node
from mkc.ir.target import Target
from mkc.ir.tiling import Split, TileMap, Tiling
from mkc.ops import Op


def reference(node: Node, ins: Sequence[Array]) -> tuple[Array, ...]:
    """[B, H, S, P, D + 2], as `attention` leaves its parts: sums, maximum, total. Rows without weight give zeros."""
    (parts,) = ins
    sums, top, total = np.split(parts, [parts.shape[-1] - 2, parts.shape[-1] - 1], axis=-1)
    highest = top.max(axis=3, keepdims=True)
    with np.errstate(invalid="ignore"):
        weight = np.exp(top - np.where(np.isneginf(highest), 0, highest))
        whole = (total * weight).sum(axis=3)
        return (np.where(whole == 0, 0, (sums * weight).sum(axis=3) / np.where(whole == 0, 1, whole)),)


def tile(node: Node, target: Target) -> Tiling:
    (parts,) = node.inputs
    grid = cut(target, parts.shape[:3], parts.nbytes, flops(node))
    dims = (Split(0), Split(1), Split(2))
    imap, omap = TileMap(parts, (*dims, None, None)), TileMap(node.output, (*dims, None))
    return Tiling(grid, (imap,), (omap,))


def flops(node: Node) -> float:
    return 2.0 * node.inputs[0].layout.numel


OP = Op("attention_merge", "AttentionMerge", tile, reference, flops=flops)
