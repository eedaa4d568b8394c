"""matmul of vectors, matrices and batches, and bmm."""

import pytest
import torch
import torch.nn.functional as F
from numerics import FLOATS, assert_as_torch, assert_reference_agrees

SHAPES = [
    ((2, 3, 5, 100), (2, 3, 100, 33)),
    ((3, 100, 130), (3, 130, 100)),
    ((2, 1, 7, 100), (3, 100, 1)),
    ((4, 1, 1, 250), (4, 2, 250, 40)),
    ((5, 100), (3, 100, 17)),
    ((2, 3, 100), (1, 100, 30)),
    ((2, 3, 100), (100, 33)),
    ((100,), (100,)),
    ((5, 100), (100,)),
    ((100,), (100, 7)),
    ((100,), (2, 100, 7)),
    ((2, 3, 5, 100), (100,)),
]


def products(*xs):
    return [x @ w for x, w in zip(xs[::2], xs[1::2], strict=True)]


def turned_products(*xs):
    return [x @ w.transpose(-1, -2) for x, w in zip(xs[::2], xs[1::2], strict=True)]


@pytest.mark.parametrize("dtype", FLOATS)
def test_matmul_of_every_rank_is_as_exact_as_torchs(dtype):
    assert_as_torch(products, *(torch.randn(s).to(dtype) for pair in SHAPES for s in pair))


@pytest.mark.parametrize("dtype", FLOATS)
def test_a_right_operand_that_is_a_transposed_view_gives_the_same(dtype):
    pairs = [(a, (*b[:-2], b[-1], b[-2])) for a, b in SHAPES if len(b) > 1]
    assert_as_torch(turned_products, *(torch.randn(s).to(dtype) for pair in pairs for s in pair))


def test_operands_may_be_transposed_sliced_and_repeated_views():
    def fn(q, k):
        q, k = q.transpose(1, 2), k.transpose(1, 2)[:, :, None].expand(2, 2, 3, 9, 64).reshape(2, 6, 9, 64)
        return q @ k.transpose(2, 3), q[..., ::2] @ k[..., 1::2].mT, q.mT @ q

    assert_as_torch(fn, torch.randn(2, 5, 6, 64), torch.randn(2, 9, 2, 64))


def test_many_batch_dimensions_that_do_not_merge_still_multiply():
    x = torch.randn(2, 3, 2, 3, 2, 3, 4, 5).permute(5, 4, 3, 2, 1, 0, 6, 7)
    assert_as_torch(lambda x: x @ x.mT, x)


def test_bmm_is_matmul_of_three_dimensions():
    assert_as_torch(lambda a, b: torch.bmm(a, b), torch.randn(3, 20, 100), torch.randn(3, 100, 130))


def test_matmul_takes_in_the_elementwise_work_behind_it():
    a, b, c = torch.randn(3, 5, 100), torch.randn(3, 100, 40), torch.randn(40)
    fast = assert_as_torch(lambda a, b, c: F.gelu(a @ b / 8 + c), a, b, c)
    assert [n.op for n in fast.compilation.sections[0].fused.nodes] == ["matmul"]


def test_reference_of_matmul_is_torchs():
    assert_reference_agrees(products, *(torch.randn(s) for pair in SHAPES for s in pair))
