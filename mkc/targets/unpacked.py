"""Streams, packed memory -> parameters. What workers stream, put together again: the inverse of `frontend/packing.py`."""

import numpy as np

from mkc.ir.dtype import Array
from mkc.ir.graph import Tensor
from mkc.ir.program import Pack, Streams, Words, in_order

SLOT = (4, 8, 256)  # fragments, compute warps, elements: 16 KB of bfloat16
EVEN = (0, 2, 6, 3, 1, 5, 7, 4, 8)  # where the dimensions of tiles stand in fragments
ODD = (0, 2, 3, 1, 5, 6, 4, 7)


def unpacked(streams: Streams, memory: Words) -> dict[Tensor, Array]:
    """The bits of every weight [N, K] that is streamed, from uint8 [streams.nbytes]."""
    return {tensor: bits for pack in streams.packs for tensor, bits in _weights(pack, memory.view(np.uint16))}


def _weights(pack: Pack, memory: Array) -> list[tuple[Tensor, Array]]:
    tiles = [_tiles(memory[offset // 2 :], count, pack) for _, count, offset in pack.shares]
    rows = np.concatenate(tiles).reshape(-1, tiles[0].shape[-1])
    if pack.gated:
        found = [rows.reshape(-1, 2, 4, rows.shape[1])[:, i].reshape(-1, rows.shape[1]) for i in range(2)]
    else:
        found = np.split(rows, np.cumsum([w.shape[0] for w in pack.weights])[:-1])
    return [(w, bits[: w.shape[0], : w.shape[1]]) for w, bits in zip(pack.weights, found, strict=True)]


def _tiles(memory: Array, count: int, pack: Pack) -> Array:
    """[tiles, 8, depth] of one share, which begins where the memory does."""
    fragments, warps, order = pack.fragments, SLOT[1] // pack.abreast, in_order(count, pack)
    laid = memory[: len(order) * warps * SLOT[2]].reshape(-1, warps, SLOT[2])[np.argsort(order)][: count * fragments]
    if fragments % 2 == 0:
        split = laid.reshape(count, fragments // 2, 2, warps, 8, 4, 2, 2, 2).transpose(np.argsort(EVEN))
    else:
        split = laid.reshape(count, fragments, warps, 8, 4, 2, 2, 2).transpose(np.argsort(ODD))
    return split.reshape(count, 8, -1)
