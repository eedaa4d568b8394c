"""index_put by a page and a row: rows of a pool written where they lie, those outside reported and left out."""

import pytest
import torch
from numerics import FLOATS, assert_as_torch, assert_reference_agrees
from oracle import machine

import mkc


def step(pool, pages, rows, new):
    pool[pages, :, rows] = new
    return pool[:, :, 0] + 1


def ops(fast):
    return [node.op for node in fast.compilation.sections[0].fused.nodes]


def compiled(pool, *inputs):
    return mkc.compile(step, (pool.clone(), *inputs), target=machine(5), fallback="error")


@pytest.mark.parametrize("dtype", [*FLOATS, torch.int64])
@pytest.mark.parametrize("integers", [torch.int64, torch.int32])
def test_rows_are_written_into_their_pages(dtype, integers):
    pool, new = (torch.randn(*shape).mul(9).to(dtype) for shape in ((7, 3, 4, 17), (19, 3, 17)))
    places = torch.randperm(28)[:19]
    pages, rows = (places // 4 - 7 * (places % 5 == 0)).to(integers), (places % 4 - 4 * (places % 3 == 0)).to(integers)  # from the end
    fast = compiled(pool, pages, rows, new)
    mine, theirs = pool.clone(), pool.clone()
    torch.testing.assert_close(fast(mine, pages, rows, new), step(theirs, pages, rows, new), rtol=0, atol=0)
    torch.testing.assert_close(mine, theirs, rtol=0, atol=0)
    assert ops(fast) == ["append_pages", "elementwise"]


def test_of_rows_for_one_place_the_last_stays():
    new = torch.arange(20.0)[:, None, None].expand(20, 2, 50)
    pool, pages = torch.zeros(3, 2, 4, 50), torch.tensor([0, 2] * 10)
    compiled(pool, pages, pages, new)(pool, pages, pages, new)
    assert pool[:, 0, :, 0].tolist() == [[18, 0, 0, 0], [0] * 4, [0, 0, 19, 0]]


@pytest.mark.parametrize("bad", [2, -3, 2**40, -(2**63)])
@pytest.mark.parametrize("which", [0, 1])
def test_a_place_outside_of_the_pool_is_reported_and_not_written(bad, which):
    memory, new, places = torch.zeros(4, 1, 2, 8), torch.ones(3, 1, 8), torch.tensor([0, 1, 1])
    fast = compiled(memory[1:3], places, places, new)
    wrong = [places, places]
    wrong[which] = torch.tensor([0, bad, 1])
    with pytest.raises(IndexError, match=f"index {bad} is outside of a dimension of 2"):
        fast(memory[1:3], *wrong, new)
    assert memory.sum((1, 3)).tolist() == [[0, 0], [8, 0], [0, 8], [0, 0]]


def test_a_pool_whose_old_rows_are_needed_is_copied_first():
    def tried(pool, pages, rows, new):
        put = pool.clone()
        put[pages, :, rows] = new
        return put, pool * 2

    places = torch.tensor([0, 1, 1])
    assert_as_torch(tried, torch.randn(2, 3, 4, 80), places, places + 1, torch.randn(3, 3, 80))


def test_reference_of_append_pages_is_torchs():
    def puts(pool, pages, rows, new):
        put = pool.clone()
        put[pages, :, rows - 4] = new
        return put

    assert_reference_agrees(puts, torch.randn(5, 3, 4, 6), torch.tensor([4, 0, 4]), torch.tensor([1, 3, 2]), torch.randn(3, 3, 6))


def test_other_places_by_two_indices_are_refused():
    def puts(x, i, new):
        x[i, i] = new
        return x + 0

    with pytest.raises(mkc.UnsupportedError, match="more than one index tensor"):
        mkc.compile(puts, (torch.randn(3, 3, 3, 3), torch.tensor([0, 1]), torch.randn(2, 3, 3)), fallback="error")
