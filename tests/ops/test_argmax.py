"""argmax, argmin, and the extremes that come with their places."""

from dataclasses import replace

import pytest
import torch
from numerics import FLOATS, assert_as_torch, assert_reference_agrees

from mkc.compiler import compile_graphs
from mkc.explain import looked_at
from mkc.targets import cuda


@pytest.mark.parametrize("dtype", [*FLOATS, torch.int64, torch.int32, torch.uint8])
def test_argmax_along_any_dimension_is_torchs(dtype):
    def fn(x):
        return [
            f(x, d, k)
            for f in (torch.argmax, torch.argmin)
            for d, k in [(None, False), (0, False), (1, True), (-1, True)]
        ]

    assert_as_torch(fn, torch.randn(7, 100, 3).mul(50).to(dtype))


def test_the_first_of_equals_wins():
    x = torch.zeros(4, 250)
    x[0, 20] = x[0, 200] = 1
    x[1, 249], x[2], x[3, 100:] = -1, torch.inf, -torch.inf
    assert_as_torch(lambda x: (x.argmax(1), x.argmin(1), x.argmax(), x.argmin(0)), x)


def test_the_first_nan_is_better_than_everything():
    x = torch.randn(3, 250)
    x[0, 100] = x[0, 50] = torch.nan
    x[1, 7], x[2, 249] = torch.inf, torch.nan
    assert_as_torch(lambda x: (x.argmax(1), x.argmin(1), x.argmax(0)), x)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("width", [4096, 50257])
def test_long_rows_are_searched_by_many_workers(dtype, width):
    x = torch.randn(2, width).to(dtype)
    x[1, 3000] = x[1, 4000] = 100.0
    fast = assert_as_torch(lambda x: (x.argmax(-1), x.argmin(-1, keepdim=True)), x)
    assert len(fast.compilation.sections[0].tasks.tasks) >= 2 * 5


def test_a_row_is_cut_by_how_fast_waiting_lanes_read_it():
    def tasks(latency_ns):
        gpu = replace(cuda.target(arch="sm_90a"), latency_ns=latency_ns)
        (made,), _ = looked_at(lambda x: x.argmax(-1), (torch.randn(1, 151936, dtype=torch.bfloat16),))
        (lowered,) = compile_graphs([section.graph for section in made.sections], gpu).sections
        return len(lowered.tasks.tasks)

    assert tasks(latency_ns=0.0) < 8
    assert tasks(latency_ns=1000.0) > 32


def test_a_long_row_without_anything_but_its_worst_has_its_first_place():
    x = torch.full((2, 5000), -torch.inf)
    x[1, 1234:] = torch.nan
    assert_as_torch(lambda x: (x.argmax(1), x.argmin(1)), x)


def chosen(x, given, add):
    """The likeliest of each row, unless one is given, and more."""
    found = x.argmax(-1, keepdim=True)
    return torch.where(given < 0, found, given) * 2 + add


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("width", [50, 5000])  # as a whole, and in chunks
def test_what_is_done_to_a_place_is_done_where_it_is_found(dtype, width):
    x = torch.randn(4, width).to(dtype)
    x[1, 7] = x[1, 40] = x[3, 11] = x[3, width - 1] = 100.0
    given, add = torch.tensor([[-1], [-1], [7], [-1]]), torch.arange(12).view(3, 4)[1:2].T
    fast = assert_as_torch(chosen, x, given, add)
    assert ops(fast) == (["argmax"] if width == 50 else ["argmax", "argmax"])
    assert_reference_agrees(chosen, x, given, add)


def test_a_place_may_become_a_number_of_another_type():
    x, scale = torch.randn(3, 4, 100), torch.randn(4, 3).T
    fast = assert_as_torch(lambda x, scale: (x.argmax(-1) == 99, x.argmin(-1).float() * scale), x, scale)
    assert ops(fast) == ["argmax", "argmax"]


def test_operands_that_lie_too_differently_are_left_to_a_node_of_their_own():
    x, given = torch.randn(2, 2, 2, 2, 2, 2, 9), torch.randn(2, 2, 2, 2, 2, 2)
    fast = assert_as_torch(lambda x, given: x.argmax(-1) * given.permute(5, 4, 3, 2, 1, 0), x, given)
    assert ops(fast) == ["argmax", "elementwise"]


def ops(fast):
    return [node.op for node in fast.compilation.sections[0].fused.nodes]


def test_extremes_along_a_dimension_come_with_their_places():
    x = torch.randint(0, 9, (3, 100, 5)).float()
    assert_as_torch(lambda x: (*x.max(1), *x.min(-1, keepdim=True), *x.max(0)), x)


def test_reference_of_argmax_is_torchs():
    x = torch.randint(0, 9, (2, 5000)).float()
    x[0, 3000] = torch.nan
    assert_reference_agrees(lambda x: (x.argmax(1), x.argmin(0), x[:, :100].argmin()), x)
