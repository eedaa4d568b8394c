"""Sums, means, extremes, variances and norms over any dimensions."""

from itertools import combinations

import pytest
import torch
import torch.nn.functional as F
from numerics import FLOATS, assert_as_torch, assert_reference_agrees

SETS = [dims for count in (1, 2, 3, 4) for dims in combinations(range(4), count)]


def every_set(fn):
    return lambda x: [fn(x, dims) for dims in SETS]


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("fn", [torch.sum, torch.mean, torch.amax])
def test_any_set_of_dimensions_can_be_reduced(dtype, fn):
    assert_as_torch(every_set(fn), torch.randn(2, 5, 3, 33).to(dtype))


@pytest.mark.parametrize("dtype", FLOATS)
def test_reductions_of_whole_tensors_are_as_exact_as_torchs(dtype):
    def fn(*xs):
        return [f(x) for x in xs for f in (torch.sum, torch.mean, torch.max, torch.min)]

    assert_as_torch(fn, *(torch.rand(shape).to(dtype) for shape in [(100, 130), (250,), (5, 1), ()]))


def test_reduced_dimensions_are_kept_with_extent_one_when_asked():
    x = torch.randn(3, 100, 5)
    assert_as_torch(lambda x: (x.sum(1, True), x.mean((0, -1), True), x.amin((), True), x.all(2, True)), x)


def test_sums_of_transposed_and_repeated_views_need_no_copy():
    fast = assert_as_torch(lambda x: x.transpose(0, 2).sum(1), torch.randn(7, 30, 5))
    assert [n.op for n in fast.compilation.sections[0].graph.nodes] == ["reduce"]
    assert_as_torch(lambda x: x[:, None].expand(7, 9, 30).sum((0, 1)), torch.randn(7, 30))


@pytest.mark.parametrize(
    ("shape", "dims"),
    [
        ((300007,), 0),
        ((3, 40000), 1),
        ((90000, 3), 0),
        ((250, 3, 250), (0, 2)),
        ((40, 2, 40, 2, 40), (0, 2, 4)),
    ],
)
def test_long_sums_are_cut_into_parts_and_stay_exact(shape, dims):
    fast = assert_as_torch(lambda x: (x.sum(dims), x.amax(dims)), torch.rand(shape))
    assert len(fast.compilation.sections[0].tasks.tasks) > 6


def test_integers_are_summed_in_64_bits_and_booleans_are_counted():
    x = torch.randint(-(2**31), 2**31 - 1, (3, 100), dtype=torch.int32)
    assert_as_torch(lambda x: (x.sum(1), x.sum(), x.long().sum(0), (x > 0).sum(1)), x)


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.uint8, torch.bool])
def test_extremes_of_integers_are_exact(dtype):
    x = torch.randint(0, 200, (3, 100)).to(dtype)
    assert_as_torch(lambda x: (x.amax(1), x.amin(0), x.max(), x.min()), x)


def test_nan_is_the_largest_and_the_smallest():
    x = torch.randn(3, 100)
    x[1, 50] = torch.nan
    assert_as_torch(lambda x: (x.amax(1), x.amin(1), x.amax(0), x.max()), x)


def test_any_and_all_take_every_dtype():
    x = torch.tensor([[0.0, 0.5, torch.nan], [0.0, 0.0, 0.0], [-1.0, 2.0, 1.0]])
    assert_as_torch(
        lambda x: (x.any(1), x.all(1), x.any(), x.all(), (x > 0).any(0), x.to(torch.uint8).any(1)), x
    )


@pytest.mark.parametrize("dtype", FLOATS)
def test_variance_takes_two_passes(dtype):
    def fn(x):
        return (
            x.var(1),
            x.std((0, 1), unbiased=False),
            x.var(),
            torch.var_mean(x, (1, 2), correction=3, keepdim=True),
        )

    assert_as_torch(fn, torch.randn(3, 100, 5).add(10).to(dtype))


def test_norms_of_every_order_are_torchs():
    x = torch.randn(3, 100)
    assert_as_torch(
        lambda x: (x.norm(dim=1), x.norm(1, 0), x.norm(3, 1), x.norm(torch.inf), F.normalize(x, dim=1)), x
    )


def test_logsumexp_takes_infinities():
    x = torch.randn(5, 100) * 50
    x[0], x[1, 3], x[2, 4] = -torch.inf, torch.inf, -torch.inf
    assert_as_torch(lambda x: (x.logsumexp(1), x.logsumexp(0), x.logsumexp((0, 1), keepdim=True)), x)


def test_a_sum_is_cast_before_it_is_added_up():
    def fn(x):
        return (
            x.sum(1, dtype=torch.int64),
            x.bfloat16().sum(1, dtype=torch.float32),
            x.int().sum(1, dtype=torch.float32),
        )

    assert_as_torch(fn, torch.rand(3, 100) * 9)


def test_elementwise_work_before_and_behind_a_reduction_is_done_in_it():
    def fn(x, y):
        return (x * y - 1).square().sum((0, 2)).sqrt() + y[0, :, 0]

    fast = assert_as_torch(fn, torch.randn(3, 100, 5), torch.randn(3, 100, 5))
    assert [n.op for n in fast.compilation.sections[0].fused.nodes] == ["reduce"]


def test_reference_of_reduce_is_torchs():
    def fn(x):
        return x.sum((0, 2)), x.mean(1), x.amax(), (x > 1).any(2), x.var(1), x.int().sum(1), x.logsumexp(1)

    assert_reference_agrees(fn, torch.randn(3, 100, 5))
