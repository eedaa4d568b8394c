"""softmax and log_softmax along any dimension."""

import pytest
import torch
import torch.nn.functional as F
from numerics import FLOATS, assert_as_torch, assert_reference_agrees

import mkc


def both(*dims):
    return lambda *xs: [f(x, d) for x, d in zip(xs, dims, strict=True) for f in (F.softmax, F.log_softmax)]


@pytest.mark.parametrize("dtype", FLOATS)
def test_softmax_of_rows_is_as_exact_as_torchs(dtype):
    xs = [torch.randn(shape).mul(3).to(dtype) for shape in [(100, 130), (2, 3, 250), (5, 1), (250,), ()]]
    assert_as_torch(both(-1, 2, 1, 0, 0), *xs)


@pytest.mark.parametrize("dtype", FLOATS)
def test_softmax_across_rows_is_as_exact_as_torchs(dtype):
    xs = [torch.randn(shape).to(dtype) for shape in [(100, 130), (2, 13, 3, 7), (2, 1, 100)]]
    assert_as_torch(both(0, 1, -2), *xs)


def test_softmax_reads_a_transposed_view_without_a_copy():
    fast = assert_as_torch(lambda x: F.softmax(x.transpose(1, 2), -1), torch.randn(2, 10, 5, 30))
    assert [n.op for n in fast.compilation.sections[0].graph.nodes] == ["softmax"]


def test_softmax_leaves_out_what_is_minus_infinity_and_a_row_of_it_is_nan():
    x = torch.randn(4, 100)
    x[0, 3:], x[1] = -torch.inf, -torch.inf
    x[2, 7] = torch.nan
    assert_as_torch(both(-1, 0), x, x)


def test_softmax_does_not_overflow():
    assert_as_torch(both(-1, 0), torch.randn(3, 130) * 1e4, torch.randn(130, 30) * 1e4)


def test_softmax_gives_the_dtype_it_is_asked_for():
    wide, narrow = torch.randn(3, 100), torch.randn(3, 100).bfloat16()
    assert_as_torch(
        lambda a, b: (F.softmax(b, -1, dtype=torch.float32), F.softmax(a, -1, dtype=torch.bfloat16)),
        wide,
        narrow,
    )


def test_softmax_takes_in_the_elementwise_work_behind_it():
    fast = assert_as_torch(
        lambda x, y: F.softmax(x, -1).mul(y).relu(), torch.randn(2, 5, 100), torch.randn(5, 100)
    )
    assert [n.op for n in fast.compilation.sections[0].fused.nodes] == ["softmax"]


def test_rows_of_softmax_are_shared_out():
    fast = mkc.compile(lambda x: F.softmax(x, -1), torch.randn(4096, 128), workers=3)
    assert len(fast.compilation.sections[0].tasks.tasks) == 3


def test_reference_of_softmax_is_torchs():
    assert_reference_agrees(both(-1, 1), torch.randn(7, 100), torch.randn(2, 100, 3))
