"""embedding, index_select, gather and indexing by tensors of integers."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numerics import FLOATS, assert_as_torch, assert_reference_agrees

import mkc

DTYPES = [*FLOATS, torch.int64, torch.bool]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", [100, 1, 1300])
def test_embedding_copies_rows_bit_by_bit(dtype, width):
    table, ids = torch.randn(50, width).to(dtype), torch.randint(0, 50, (2, 7))
    fast = mkc.compile(lambda i, t: F.embedding(i, t), (ids, table), fallback="error")
    assert torch.equal(fast(ids, table), table[ids])


@pytest.mark.parametrize("index", [torch.int64, torch.int32])
def test_an_index_may_stand_for_any_dimension(index):
    x, i = torch.randn(9, 10, 11), torch.randint(0, 9, (5,)).to(index)
    assert_as_torch(lambda x, i: (x.index_select(0, i), x.index_select(1, i), x.index_select(-1, i)), x, i)
    assert_as_torch(lambda x, i: (x[i], x[:, i], x[..., i], x[:, :, i.view(1, 5)]), x, i)


def test_negative_indices_count_from_the_end():
    assert_as_torch(lambda x, i: (x[i], x[:, i], x[i, i]), torch.randn(9, 10), torch.randint(-9, 9, (3, 4)))


def test_neighbouring_index_tensors_are_broadcast_together():
    x, i, j = torch.randn(9, 10, 11), torch.randint(-9, 9, (3, 1)), torch.randint(-10, 10, (4,))
    assert_as_torch(lambda x, i, j: (x[i, j], x[:, j, i], x[i, j, i]), x, i, j)


def test_gather_takes_an_index_for_each_element():
    x, i = torch.randn(9, 10, 110), torch.randint(0, 9, (5, 6, 100))
    assert_as_torch(lambda x, i: (x.gather(0, i), x.gather(1, i), x.gather(-1, i)), x, i)


def test_tables_and_indices_may_be_views():
    x, i = torch.randn(9, 3, 10, 11), torch.randint(0, 9, (4, 6))
    assert_as_torch(lambda x, i: (x[:, :, :, 2:9][i.T[::2]], x.permute(3, 1, 0, 2)[:, :, i]), x, i)


@pytest.mark.parametrize("wrong", [-51, -1000, 50, 2**40, -(2**63)])
def test_an_index_outside_of_the_table_is_reported_and_the_next_run_is_right(wrong):
    table, ids = torch.randn(50, 100), torch.tensor([3, 7])
    fast = mkc.compile(lambda i, t: F.embedding(i, t), (ids, table), fallback="error")
    with pytest.raises(mkc.OutOfRangeError, match=rf"index {wrong} is outside of a dimension of 50: task \d+, gather_0"):
        fast(torch.tensor([3, wrong]), table)
    assert torch.equal(fast(ids, table), table[ids])


def test_masks_and_scattered_indices_stay_in_torch():
    x, i = torch.randn(9, 10, 11), torch.randint(0, 9, (4,))
    for fn in (lambda x, i: x[:, :4][:, i > 3], lambda x, i: x[i, :, i]):
        with pytest.raises(mkc.MkcError):
            mkc.compile(fn, (x, i), fallback="error")


def test_rows_and_columns_are_shared_out():
    fast = assert_as_torch(lambda i, t: F.embedding(i, t), torch.tensor([4]), torch.randn(9, 4096))
    tasks = fast.compilation.sections[0].tasks
    assert np.prod([axis.parts for axis in tasks.tilings[0].grid]) >= 5  # as many as the workers, or as rows are wide


def test_embedding_takes_in_the_elementwise_work_behind_it():
    i, t, p = torch.randint(0, 50, (2, 7)), torch.randn(50, 100).bfloat16(), torch.randn(2, 7, 100)
    fast = assert_as_torch(lambda i, t, p: F.embedding(i, t) * 8 + p, i, t, p)
    assert [n.op for n in fast.compilation.sections[0].fused.nodes] == ["gather"]


def test_reference_of_gather_is_torchs():
    x, i = torch.randn(9, 10), torch.randint(-9, 9, (3, 4))
    assert_reference_agrees(lambda x, i: (x[i], x[:, i], x.gather(0, i.clamp(0))), x, i)
