"""Attention over keys and values that a table finds in a pool of pages: no copy is made of them, and what torch says is what is found."""

import pytest
import torch
from numerics import FLOATS, assert_as_torch, assert_close_to_float64, assert_reference_agrees
from ops.test_attention import grouped, heads, ops, repeated
from oracle import machine

import mkc


def together(pool, table):
    return pool[table].transpose(1, 2).flatten(2, 3)


def attend(q, keys, values, table, *mask):
    return grouped(q, together(keys, table), together(values, table), *mask)


def table_of(batch, count, pages):
    """Shuffled, and some of them counted from the end."""
    return torch.randperm(pages)[: batch * count].view(batch, count) - pages * (torch.arange(batch * count) % 3 == 0).view(batch, count)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize(
    ("batch", "group", "depth", "rows", "size", "count"),
    [(1, 2, 32, 1, 16, 3), (3, 4, 128, 1, 8, 5), (2, 1, 80, 17, 7, 5), (3, 2, 64, 1, 128, 6), (1, 1, 24, 5, 1, 20), (2, 3, 32, 4, 33, 1)],
)
def test_pages_are_read_where_they_lie(dtype, batch, group, depth, rows, size, count):
    pages, groups = batch * count + 2, 2
    pools = [heads(pages, groups, size, depth, dtype) for _ in range(2)]
    table = table_of(batch, count, pages)
    fast = assert_as_torch(attend, heads(batch, groups * group, rows, depth, dtype), *pools, table)
    assert [op for op in ops(fast) if op != "attention_merge"] == ["attention"]


@pytest.mark.parametrize("groups", [1, 2])
def test_keys_of_pages_that_were_repeated_by_hand_are_read_where_they_were(groups):
    def step(q, keys, values, table, mask):
        return repeated(q, together(keys, table), together(values, table), mask)

    inputs = heads(2, 2 * groups, 1, 32), heads(9, groups, 4, 32), heads(9, groups, 4, 32), table_of(2, 4, 9)
    assert ops(assert_as_torch(step, *inputs, torch.rand(2, 1, 1, 16) < 0.5)) == ["attention"]


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize(("size", "count", "window"), [(8, 5, 0), (64, 10, 0), (16, 5, 9)])
def test_only_pages_with_keys_that_are_seen_are_read(dtype, size, count, window):
    """The other numbers of the table are those of a page that is not a number, or of none."""

    def step(q, keys, values, table, position):
        number = torch.arange(size * count)[None, None, None]
        last = position.view(-1, 1, 1, 1)
        return attend(q, keys, values, table, (number <= last) & (number > last - window) if window else number <= last)

    pools = [heads(3 * count, 2, size, 32, dtype) for _ in range(2)]
    q, table = heads(2, 4, 1, 32, dtype), torch.randperm(3 * count)[: 2 * count].view(2, count)
    fast = mkc.compile(step, (q, *pools, table, torch.tensor([0, 1])), target=machine(5), fallback="error")
    for positions in ([0, size], [size - 1, size * count - 1], [2 * size + 1, 3]):
        hidden, used = [pool.clone() for pool in pools], table.clone()
        for row, position in enumerate(positions):
            first = max(0, position - window + 1) if window else 0
            seen = torch.arange(size * count)
            seen = ((seen >= first) & (seen <= position)).view(count, size)
            for page, rows in zip(table[row].tolist(), seen, strict=True):
                for pool in hidden:
                    pool[page, :, ~rows] = torch.nan
            used[row, ~seen.any(1)] = 10**6
        got = fast(q, *hidden, used, torch.tensor(positions))
        assert_close_to_float64(got, lambda *x: step(*x, table, torch.tensor(positions)), q, *pools)  # noqa: B023


@pytest.mark.parametrize("bad", [9, -10, 2**40, -(2**63)])
def test_a_page_outside_of_the_pool_is_reported_and_the_next_run_is_right(bad):
    q, pools, table = heads(2, 4, 1, 32), [heads(9, 2, 4, 32) for _ in range(2)], table_of(2, 4, 9)
    fast = mkc.compile(attend, (q, *pools, table), target=machine(5), fallback="error")
    wrong = table.clone()
    wrong[1, 2] = bad
    with pytest.raises(IndexError, match=f"index {bad} is outside of a dimension of 9"):
        fast(q, *pools, wrong)
    torch.testing.assert_close(fast(q, *pools, table), attend(q, *pools, table))


def test_pages_that_have_changed_since_are_put_together_in_time():
    def step(q, keys, values, table):
        k, v = together(keys, table), together(values, table)
        keys.mul_(2.0)
        return grouped(q, k, v)

    q, pools, table = heads(2, 4, 1, 32), [heads(9, 2, 4, 32) for _ in range(2)], table_of(2, 4, 9)
    fast = mkc.compile(step, (q, pools[0].clone(), pools[1], table), target=machine(5), fallback="error")
    torch.testing.assert_close(fast(q, pools[0].clone(), pools[1], table), attend(q, *pools, table))


@pytest.mark.parametrize(
    "other",
    [
        lambda pool, table: pool[table].transpose(1, 2).flatten(2, 3) * 2,
        lambda pool, table: pool[table].permute(0, 2, 3, 1, 4).flatten(2, 3),
        lambda pool, table: pool[table].flatten(1, 2).reshape(2, 2, 16, 32),
        lambda pool, table: pool[(table + 1) % 9].transpose(1, 2).flatten(2, 3),
    ],
)
def test_what_is_put_together_otherwise_is_not_mistaken(other):
    def step(q, keys, values, table):
        return grouped(q, together(keys, table), other(values, table))

    assert_as_torch(step, heads(2, 4, 1, 32), heads(9, 2, 4, 32), heads(9, 2, 4, 32), table_of(2, 4, 9))


def test_reference_of_attention_in_pages_is_torchs():
    def both(q, keys, values, table, mask, many):
        return [attend(q, keys, values, table), attend(q, keys, values, table, mask), attend(q[:1, :, :1], many, many, table[:1])]

    inputs = heads(2, 4, 3, 32), heads(9, 2, 4, 32), heads(9, 2, 4, 32), table_of(2, 4, 9)
    assert_reference_agrees(both, *inputs, torch.rand(1, 1, 3, 16) < 0.5, heads(9, 1, 256, 32))
