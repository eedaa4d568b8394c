"""stream_merge: the parts of an attention whose keys were shared out, put together by what their keys weigh."""

import numpy as np
import pytest
from oracle import computed, machine

from mkc.ir.builder import Builder
from mkc.ir.dtype import Array, DType
from mkc.ir.graph import Kind
from mkc.ops.decode_attention import LINE

RNG = np.random.default_rng(0)


def merged(parts: Array, lse: Array, workers: int) -> Array:
    """parts [S, H, D], lse [S, H] -> [H * D]."""
    splits, heads, depth = parts.shape
    builder = Builder()
    given = builder.input("parts", (splits, heads * depth), DType.BF16, Kind.INPUT)
    levels = builder.input("lse", (splits, heads, LINE), DType.F32, Kind.INPUT)
    out = builder.input("y", (heads * depth,), DType.BF16, Kind.STATE)
    builder.append("stream_merge", (given, levels), (out,))
    values = {"parts": parts.reshape(splits, -1), "lse": np.repeat(lse[..., None], LINE, axis=2)}
    return computed(builder.finish(()), machine(workers, streams=True), values)["y"]


def exact(parts: Array, lse: Array) -> Array:
    top = np.where(np.isneginf(lse.max(axis=0)), 0, lse.max(axis=0))
    weights = np.exp2(lse - top)
    return ((weights[..., None] * parts).sum(axis=0) / np.maximum(weights.sum(axis=0), 2.0**-30)[:, None]).reshape(-1)


@pytest.mark.parametrize("workers", [1, 3, 132])
@pytest.mark.parametrize("shape", [(1, 2, 16), (2, 16, 128), (3, 5, 80), (16, 3, 48)])
def test_parts_count_by_what_their_keys_weigh(workers: int, shape: tuple[int, int, int]) -> None:
    parts = DType.BF16.rounded(RNG.standard_normal(shape, np.float32))
    lse = 8 * RNG.standard_normal(shape[:2], np.float32)
    np.testing.assert_allclose(merged(parts, lse, workers), exact(parts, lse), rtol=2**-8, atol=2**-12)


def test_a_part_without_keys_counts_for_nothing() -> None:
    parts = DType.BF16.rounded(RNG.standard_normal((3, 4, 16), np.float32))
    lse = np.array([[3, -200, 0, -np.inf], [1, 5, 0, -np.inf], [-np.inf] * 4], np.float32)
    found = merged(parts, lse, 2)
    assert (found[48:] == 0).all()
    np.testing.assert_allclose(found, exact(parts, lse), rtol=2**-8, atol=2**-12)
