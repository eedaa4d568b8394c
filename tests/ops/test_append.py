"""index_copy, index_put and the scatters: rows of a state written where they lie, or of a copy when the old ones count."""

import pytest
import torch
from numerics import FLOATS, assert_as_torch, assert_reference_agrees
from oracle import machine

import mkc

ROWS = torch.tensor([3, 9, 1, 39, 0])


def ops(fast):
    return [node.op for node in fast.compilation.sections[0].fused.nodes]


def assert_writes_as_torch(fn, state, *inputs):
    """`fn` changes its first argument in place and returns what torch's does."""
    fast = mkc.compile(fn, (state.clone(), *inputs), target=machine(5), fallback="error")
    mine, theirs = state.clone(), state.clone()
    torch.testing.assert_close(fast(mine, *inputs), fn(theirs, *inputs), rtol=0, atol=0)
    torch.testing.assert_close(mine, theirs, rtol=0, atol=0)
    return fast


@pytest.mark.parametrize("dtype", [*FLOATS, torch.int64])
def test_rows_are_written_where_the_cache_lies(dtype):
    def step(cache, rows, new):
        cache.index_copy_(2, rows, new)
        return cache[:, :, :10] + 1

    cache, new = (torch.randn(2, 3, n, 17).mul(9).to(dtype) for n in (40, 5))
    assert ops(assert_writes_as_torch(step, cache, ROWS, new)) == ["append", "elementwise"]


@pytest.mark.parametrize("dim", [1, 2, -1])
def test_each_line_of_a_scatter_may_write_rows_of_its_own(dim):
    def step(cache, rows, new):
        cache.scatter_(dim, rows.view(3, 1, 1).expand(new.shape), new)
        cache[:, 1].scatter_(1, rows.view(3, 1), 1 - new[:, 0, :1])
        return cache + 0

    def whole(cache, rows, new):
        cache.scatter_(dim, rows.view(3, 1, 1).expand(new.shape), new)

    shape = [3, 4, 6]
    shape[dim] = 1
    inputs = torch.randn(3, 4, 6), torch.tensor([2, 0, 3]), torch.randn(shape)
    assert_writes_as_torch(step, *inputs)
    fast = mkc.compile(whole, inputs, target=machine(5), fallback="error")
    assert ops(fast) == ["append"]


def test_a_scatter_of_anything_but_rows_is_refused():
    def step(cache, places, new):
        cache.scatter_(1, places, new)
        return cache + 0

    with pytest.raises(mkc.UnsupportedError, match="a scatter of anything but whole rows"):
        mkc.compile(step, (torch.randn(3, 4, 5), torch.zeros(3, 1, 5, dtype=torch.int64), torch.randn(3, 1, 5)), fallback="error")


def test_reference_of_append_with_an_index_a_line_is_torchs():
    def puts(x, i, y):
        return x.scatter(2, i.view(2, 3, 1, 1).expand(y.shape), y)

    assert_reference_agrees(puts, torch.randn(2, 3, 9, 4), torch.randint(0, 9, (2, 3)), torch.randn(2, 3, 1, 4))


def test_what_is_no_state_is_copied_first():
    fast = assert_as_torch(
        lambda x, i, y: x.index_copy(1, i, y), torch.randn(3, 40, 4), ROWS, torch.randn(3, 5, 4)
    )
    assert ops(fast) == ["elementwise", "append"]


def test_a_state_whose_old_value_is_needed_later_is_copied_first():
    def step(cache, rows, new):
        tried = cache.index_copy(0, rows, new)
        cache.mul_(2)
        return tried

    assert_writes_as_torch(step, torch.randn(40, 7), ROWS, torch.randn(5, 7))


def test_rows_may_come_from_the_cache_itself():
    def step(cache, rows):
        cache.index_copy_(0, rows, cache[2:7].clone())
        cache[1:9] = cache[:8].clone()
        return cache + 0

    assert_writes_as_torch(step, torch.randn(40, 3), ROWS)


def test_a_row_outside_of_the_cache_is_reported_and_not_written():
    def step(cache, rows, new):
        cache.index_copy_(0, rows, new)
        return cache + 0

    memory, new = torch.zeros(4, 8), torch.ones(5, 8)
    fast = mkc.compile(step, (memory[1:3].clone(), torch.arange(5) % 2, new), fallback="error")
    with pytest.raises(IndexError, match=r"index (-1|2|1099511627776|-9223372036854775808) is outside of a dimension of 2"):
        fast(memory[1:3], torch.tensor([-1, 2, 1, 2**40, -(2**63)]), new)
    assert memory.sum(1).tolist() == [0, 0, 8, 0]


def test_of_equal_indices_the_last_row_stays():
    def step(cache, rows, new):
        cache.index_copy_(0, rows, new)
        return cache + 0

    cache, new = torch.zeros(3, 50), torch.arange(20.0)[:, None].expand(20, 50)
    fast = mkc.compile(step, (cache, torch.zeros(20, dtype=torch.int64), new), fallback="error")
    assert fast(cache, torch.tensor([0, 2] * 10), new)[:, 0].tolist() == [18, 0, 19]


def test_index_put_counts_from_the_end_and_broadcasts_its_values():
    def step(cache, rows, new, one):
        cache[:, rows] = new
        cache[:, :, rows[:2].int()] = one
        cache[rows[2:3] - 1] = 5.0
        return cache + 0

    cache = torch.randn(3, 40, 13)
    assert_writes_as_torch(step, cache, ROWS - 4 * (ROWS > 3) - 1, torch.randn(3, 5, 13), torch.randn(1))


def test_slices_and_single_rows_are_written_in_place():
    def step(cache, some, one):
        cache[:, 4:30:3] = some
        cache[:, -1] = one
        return cache.sum()

    cache, some, one = torch.randint(0, 9, (3, 40, 5)).float(), torch.ones(3, 9, 5), torch.ones(3, 5)
    fast = assert_writes_as_torch(step, cache, some, one)
    assert ops(fast)[:2] == ["elementwise", "elementwise"]


def test_heads_of_a_long_prompt_are_shared_out():
    def step(cache, rows, new):
        cache.index_copy_(2, rows, new)
        return cache[:, :, 0] + 0

    cache, new = torch.randn(1, 8, 64, 32), torch.randn(1, 8, 48, 32)
    fast = assert_writes_as_torch(step, cache, torch.randperm(64)[:48], new)
    tasks = fast.compilation.sections[0].tasks
    assert sum(tasks.node_of(t).op == "append" for t in range(len(tasks.tasks))) == 5


def test_reference_of_append_is_torchs():
    def puts(x, i, y):
        put = x.clone()
        put[:, i - 40] = y
        return x.index_copy(1, i, y), put

    assert_reference_agrees(puts, torch.randn(3, 40, 4), ROWS, torch.randn(3, 5, 4))
