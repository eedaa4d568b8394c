"""layer_norm over the last dimensions, with and without weight and bias."""

import pytest
import torch
import torch.nn.functional as F
from numerics import FLOATS, assert_as_torch, assert_reference_agrees


def norm(x, w, b):
    shape = x.shape[-1:]
    return (
        F.layer_norm(x, shape, w, b),
        F.layer_norm(x, shape, w),
        F.layer_norm(x, shape, None, b),
        F.layer_norm(x, shape),
    )


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("width", [100, 130, 250, 1])
def test_layer_norm_is_as_exact_as_torchs(dtype, width):
    x = torch.randn(2, 7, width).mul(3).add(5).to(dtype)
    assert_as_torch(norm, x, torch.randn(width).to(dtype), torch.randn(width).to(dtype))


def test_layer_norm_takes_several_dimensions():
    x, w = torch.randn(5, 3, 13, 7), torch.randn(13, 7)
    assert_as_torch(lambda x, w: (F.layer_norm(x, (13, 7), w, w), F.layer_norm(x, (3, 13, 7))), x, w)


def test_layer_norm_of_a_far_away_mean_keeps_its_digits():
    assert_as_torch(lambda x: F.layer_norm(x, (130,)), torch.randn(9, 130) + 1000)


def test_layer_norm_keeps_a_given_epsilon():
    assert_as_torch(lambda x: F.layer_norm(x, (100,), eps=0.5), torch.randn(3, 100))


def test_layer_norm_reads_a_slice_without_a_copy():
    fast = assert_as_torch(
        lambda x: F.layer_norm(x[:, :, :100].transpose(0, 1), (100,)), torch.randn(5, 3, 130)
    )
    assert [n.op for n in fast.compilation.sections[0].graph.nodes] == ["layer_norm"]


def test_layer_norm_mixes_a_narrow_input_with_wide_parameters():
    x, w = torch.randn(5, 100).bfloat16(), torch.randn(100)
    assert_as_torch(lambda x, w: F.layer_norm(x, (100,), w, w), x, w)


def test_layer_norm_takes_in_the_elementwise_work_behind_it():
    x, y = torch.randn(2, 5, 100), torch.randn(2, 5, 100)
    fast = assert_as_torch(lambda x, y: F.gelu(F.layer_norm(x, (100,))) + y, x, y)
    assert [n.op for n in fast.compilation.sections[0].fused.nodes] == ["layer_norm"]


def test_native_layer_norm_gives_its_statistics_too():
    x, w = torch.randn(2, 5, 100), torch.randn(100)
    assert_as_torch(lambda x, w: torch.native_layer_norm(x, (100,), w, w, 1e-5), x, w)


def test_reference_of_layer_norm_is_torchs():
    assert_reference_agrees(norm, torch.randn(3, 5, 100), torch.randn(100), torch.randn(100))
