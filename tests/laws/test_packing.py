"""packing: a stream of weights holds every one of them once, where the compute warp that multiplies it will look."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mkc.frontend.packing import packed
from mkc.ir.dtype import Array, DType
from mkc.ir.graph import Kind, Storage, Tensor
from mkc.ir.layout import contiguous
from mkc.ir.program import SLOT_BYTES, Pack, passing, slots
from mkc.ops._streaming import ABREAST, FRAGMENT_DEPTH, fragments, tiles_abreast
from mkc.targets.unpacked import unpacked

WARPS = 8


@st.composite
def packs(draw: st.DrawFn) -> Pack:
    depth, gated, beside = 8 * draw(st.integers(1, 80)), draw(st.booleans()), draw(st.sampled_from(ABREAST))
    shares = draw(st.lists(st.integers(1, 2 * beside + 1), min_size=1, max_size=3))
    rows = 8 * sum(shares) - (0 if gated else draw(st.integers(0, 7)))
    count = fragments(depth, beside)
    places, first, end = [], 0, 0
    for tiles in shares:
        places.append((first, tiles, end))
        first, end = first + tiles, end + slots(passing(tiles, count, beside)) * SLOT_BYTES
    weights = [weight(f"w{i}", rows // 2, depth) for i in range(2)] if gated else [weight("w", rows, depth)]
    return Pack(tuple(weights), gated, count, tuple(places), count, 24, beside)


def weight(name: str, *shape: int) -> Tensor:
    return Tensor(DType.BF16, contiguous(shape), Storage(name, Kind.PARAM, 2 * shape[0] * shape[1]))


def laid(pack: Pack, values: dict[str, Array]) -> tuple[Any, torch.Tensor]:
    """The stream, and its bytes."""
    _, tiles, offset = pack.shares[-1]
    end = offset + slots(passing(tiles, pack.fragments, pack.abreast)) * SLOT_BYTES
    streams: Any = SimpleNamespace(packs=(pack,), nbytes=end)
    return streams, packed(streams, lambda t: torch.from_numpy(values[t.storage.name]).bfloat16(), torch.device("cpu"))


def multiplied(pack: Pack, memory: Array, x: Array) -> Array:
    """What the compute warps make of it: `multiply_tiles` in tiles.cuh, and the tensor cores, in the words of numpy."""
    sharers = WARPS // pack.abreast
    sums = []
    for _, tiles, offset in pack.shares:
        share = memory[offset // 2 :]
        ranks = -(-tiles // pack.abreast)  # of tiles side by side
        y = np.zeros((ranks, pack.abreast, 8))
        for place in range(ranks * pack.fragments):
            rank, fragment = divmod(place, pack.fragments)
            slot = share[place // 4 * SLOT_BYTES // 2 :][: SLOT_BYTES // 2].reshape(4, WARPS, 8, 4, 2, 2, 2)
            for warp in range(WARPS):
                a, b = slot[place % 4, warp], operand(x, pack.fragments, fragment, sharers, warp % sharers)
                y[rank, warp // sharers] += np.einsum("rtkhe,htke->r", a, b)  # row, thread, half of k, half of a, element
        sums.append(y.reshape(-1)[: tiles * 8])
    return np.concatenate(sums)


def operand(x: Array, count: int, fragment: int, sharers: int, part: int) -> Array:
    """[2 halves of a, 4 threads of a row, 2 halves of k, 2 elements]: what a warp loads of the row for a fragment."""
    if count % 2:
        return x[(fragment * sharers + part) * 32 :][:32].reshape(2, 4, 2, 2)
    return x[(fragment // 2 * sharers + part) * 64 :][:64].reshape(2, 4, 2, 2, 2)[:, :, fragment % 2]


@given(packs(), st.integers(0, 99))
def test_every_weight_meets_the_element_of_the_row_that_it_belongs_to(pack: Pack, seed: int) -> None:
    rng = np.random.default_rng(seed)
    values = {w.storage.name: rng.integers(-8, 9, w.shape).astype(np.float32) for w in pack.weights}
    x = np.zeros(pack.fragments * FRAGMENT_DEPTH // pack.abreast)
    x[: pack.weights[0].shape[1]] = rng.integers(-8, 9, pack.weights[0].shape[1])
    _, memory = laid(pack, values)
    products = [w @ x[: w.shape[1]] for w in values.values()]
    rows = np.stack([p.reshape(-1, 4) for p in products], 1).reshape(-1) if pack.gated else products[0]
    np.testing.assert_array_equal(multiplied(pack, memory.view(torch.bfloat16).double().numpy(), x)[: len(rows)], rows)


@given(packs())
def test_what_was_packed_is_found_again(pack: Pack) -> None:
    values = {w.storage.name: np.arange(i, i + w.layout.numel).reshape(w.shape) % 251 for i, w in enumerate(pack.weights)}
    streams, memory = laid(pack, values)
    for tensor, bits in unpacked(streams, memory.numpy()).items():
        found = torch.from_numpy(bits).view(torch.bfloat16).float().numpy()
        np.testing.assert_array_equal(found, values[tensor.storage.name])


# ---- tiles side by side


@given(st.integers(1, 1024), st.integers(1, 40_000), st.integers(1, 170))
def test_the_worker_that_reads_most_reads_no_more_than_if_all_warps_shared_a_depth(units: int, tiles: int, workers: int) -> None:
    def most(beside: int) -> int:
        ranks = -(-tiles // beside)
        return passing(-(-ranks // workers) * beside, fragments(8 * units, beside), beside)

    chosen = tiles_abreast(8 * units, tiles, workers)
    assert most(chosen) == min(map(most, ABREAST)) <= most(1)


@given(st.integers(1, 64), st.integers(1, 40_000), st.integers(1, 170))
def test_a_depth_that_eight_warps_share_evenly_stays_theirs(count: int, tiles: int, workers: int) -> None:
    if fragments(256 * count) == count:
        assert tiles_abreast(256 * count, tiles, workers) == 1


@pytest.mark.parametrize(
    ("depth", "tiles", "beside", "count"),
    [
        (576, 6144, 4, 9),  # the choice of SmolLM2-135M
        (576, 384, 4, 9),  # its gates
        (576, 72, 1, 3),  # few tiles, of which a worker has one
        (1152, 32768, 2, 9),  # the choice of Gemma 3 1B
        (1152, 1728, 2, 9),
        (960, 6144, 4, 15),
        (896, 1216, 2, 7),
        (6912, 144, 1, 28),
        (1024, 18992, 1, 4),
        (2048, 2048, 1, 8),
    ],
)
def test_known_depths_are_shared_so(depth: int, tiles: int, beside: int, count: int) -> None:
    assert tiles_abreast(depth, tiles, 132) == beside
    assert fragments(depth, beside) == count
