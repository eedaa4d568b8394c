"""matmul of vectors, matrices and batches, and bmm."""

import pytest
import torch
import torch.nn.functional as F
from numerics import FLOATS, assert_as_torch, assert_reference_agrees

from mkc.targets import cpu

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


DEPTHS = (2, 15, 16, 31, 32, 33, 63, 65, 127, 129, 300)


@pytest.fixture(params=["this machine's instructions", "those of any machine"])
def _instructions(request, monkeypatch):
    if request.param == "those of any machine":
        monkeypatch.setattr(cpu, "FLAGS", tuple(f for f in cpu.FLAGS if not f.startswith("-march")))


@pytest.mark.usefixtures("_instructions")
@pytest.mark.parametrize("dtype", FLOATS)
def test_sums_of_every_length_over_ragged_rows_are_as_exact_as_torchs(dtype):
    pairs = [(torch.randn(m, depth), torch.randn(37, depth)) for depth in DEPTHS for m in (1, 6)]
    assert_as_torch(turned_products, *(t.to(dtype) for pair in pairs for t in pair))


def test_what_is_infinite_or_not_a_number_stays_so_in_sums():
    x, w = torch.ones(1, 100, dtype=torch.bfloat16), torch.ones(40, 100, dtype=torch.bfloat16)
    w[3, 70], w[17, 99], w[33, 0] = float("nan"), float("inf"), float("-inf")
    assert_as_torch(turned_products, x, w)
    assert_as_torch(turned_products, x.half(), w.half())


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
