"""rms_norm over the last dimensions, with and without a weight."""

import pytest
import torch
import torch.nn.functional as F
from numerics import FLOATS, assert_as_torch, assert_close_to_float64, assert_reference_agrees

import mkc

EPSILON = torch.finfo(torch.float32).eps


def norm(x, w):
    return F.rms_norm(x, x.shape[-1:], w, 1e-6), F.rms_norm(x, x.shape[-1:], None, 1e-6)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("width", [100, 130, 250, 1])
def test_rms_norm_is_as_exact_as_torchs(dtype, width):
    assert_as_torch(norm, torch.randn(2, 7, width).mul(3).to(dtype), torch.randn(width).to(dtype))


@pytest.mark.parametrize("dtype", FLOATS)
def test_rms_norm_without_epsilon_takes_float32s_as_torch_does(dtype):
    x = torch.randn(4, 100).mul(1e-3).to(dtype)
    fast = mkc.compile(lambda x: F.rms_norm(x, (100,)), x, fallback="error")
    torch.testing.assert_close(fast(x), F.rms_norm(x, (100,)))
    assert_close_to_float64(fast(x), lambda x: F.rms_norm(x, (100,), None, EPSILON), x)


def test_rms_norm_takes_several_dimensions():
    x, w = torch.randn(5, 3, 13, 7), torch.randn(13, 7)
    assert_as_torch(lambda x, w: F.rms_norm(x, (13, 7), w, 1e-5), x, w)


def test_rms_norm_of_transposed_heads_needs_no_copy():
    fast = assert_as_torch(
        lambda q, w: F.rms_norm(q.transpose(1, 2), (64,), w, 1e-5), torch.randn(2, 9, 4, 64), torch.randn(64)
    )
    assert [n.op for n in fast.compilation.sections[0].graph.nodes] == ["rms_norm"]


def test_rms_norm_takes_in_the_elementwise_work_behind_it():
    x, w = torch.randn(2, 5, 100), torch.randn(100)
    fast = assert_as_torch(lambda x, w: F.silu(F.rms_norm(x, (100,), w, 1e-5)) * x, x, w)
    assert [n.op for n in fast.compilation.sections[0].fused.nodes] == ["rms_norm"]


def test_reference_of_rms_norm_is_torchs():
    assert_reference_agrees(norm, torch.randn(3, 5, 100), torch.randn(100))
