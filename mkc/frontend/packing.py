"""Packs, weights -> packed memory. Parameters in the order in which workers multiply them; the map is in tiles.cuh."""

from collections.abc import Callable

import torch

from mkc.ir.graph import Tensor
from mkc.ir.program import Pack, Streams, in_order

SLOT = (4, 8, 256)  # fragments, compute warps, elements: 16 KB of bfloat16


def packed(streams: Streams, tensor: Callable[[Tensor], torch.Tensor], device: torch.device) -> torch.Tensor:
    """uint8 [streams.nbytes]; `tensor` gives the parameter that a tensor of the plan stands for, [N, K]."""
    memory = torch.empty(streams.nbytes // 2, dtype=torch.bfloat16, device=device)
    for pack in streams.packs:
        _lay(memory, pack, [tensor(w) for w in pack.weights])
    return memory.view(torch.uint8)


def _lay(memory: torch.Tensor, pack: Pack, weights: list[torch.Tensor]) -> None:
    warps = SLOT[1] // pack.abreast  # of a tile
    fragments = _fragments(_tiles(weights, pack.gated, 32 * warps * pack.fragments), pack.fragments, warps)
    none = len(fragments)  # the number of a fragment of zeros, which fills up slots
    fragments = torch.cat([fragments, fragments.new_zeros(1, warps, SLOT[2])])
    numbers = []
    for first, count, _ in pack.shares:
        mine = torch.tensor(in_order(count, pack))
        mine = torch.where(mine < count * pack.fragments, mine + first * pack.fragments, none)
        numbers += [mine, torch.full((-len(mine) % (SLOT[0] * pack.abreast),), none)]
    slots = fragments.index_select(0, torch.cat(numbers).to(memory.device)).view(-1)
    start = pack.shares[0][2] // 2
    memory[start : start + len(slots)] = slots


def _tiles(weights: list[torch.Tensor], gated: bool, depth: int) -> torch.Tensor:
    """[tiles, 8, depth], padded with zeros."""
    if gated:
        rows = torch.cat([w.reshape(-1, 4, w.shape[1]) for w in weights], 1).flatten(0, 1)
    else:
        rows = torch.cat(weights)
    rows = torch.nn.functional.pad(rows, (0, depth - rows.shape[1], 0, -rows.shape[0] % 8))
    return rows.reshape(-1, 8, depth)


def _fragments(tiles: torch.Tensor, count: int, warps: int) -> torch.Tensor:
    """[tiles * count, warps, 256]: a lane's 8 elements are the a operand of mma.m16n8k16, rows g and g + 8 in turn."""
    if count % 2 == 0:  # k = 64 (warps c + warp) + 32 half + 8 t + 4 j + e
        split = tiles.reshape(len(tiles), 8, -1, warps, 2, 4, 2, 2, 2)  # tile g c w h t j e2 e1
        ordered = split.permute(0, 2, 6, 3, 1, 5, 7, 4, 8)
    else:  # k = 32 (warps c + warp) + 16 half + 4 t + e
        split = tiles.reshape(len(tiles), 8, -1, warps, 2, 4, 2, 2)  # tile g c w h t e2 e1
        ordered = split.permute(0, 2, 3, 1, 5, 6, 4, 7)
    return ordered.reshape(-1, warps, 256)
