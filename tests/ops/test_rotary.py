"""Rotary position embedding: found however it is spelled, and only where that is what is spelled."""

import pytest
import torch
from numerics import FLOATS, assert_as_torch, assert_reference_agrees

import mkc


def ops(fast):
    return [node.op for node in fast.compilation.sections[0].fused.nodes]


def turned(x):
    half = x.shape[-1] // 2
    return torch.cat((-x[..., half:], x[..., :half]), -1)


def rotated(x, cos, sin):
    return x * cos + turned(x) * sin


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize(("rows", "depth"), [(1, 128), (17, 80), (5, 6)])
def test_rows_are_turned_as_torch_turns_them(dtype, rows, depth):
    def turn(q, k, cos, sin):
        cos, sin = cos[:, None], sin[:, None]
        return [rotated(q.transpose(1, 2), cos, sin), rotated(k.transpose(1, 2), cos, sin)]

    q, k = torch.randn(2, rows, 4, depth).to(dtype), torch.randn(2, rows, 2, depth).to(dtype)
    angles = torch.randn(2, rows, depth)
    assert ops(assert_as_torch(turn, q, k, angles.cos().to(dtype), angles.sin().to(dtype))) == [
        "rotary",
        "rotary",
    ]


@pytest.mark.parametrize(
    "spelling",
    [
        lambda x, cos, sin: cos * x + sin * turned(x),
        lambda x, cos, sin: turned(x) * sin + x * cos,
        lambda x, cos, sin: torch.add(cos * x, turned(x) * sin),
        lambda x, cos, sin: rotated(x.float(), cos, sin),
        lambda x, cos, sin: rotated(x.float(), cos, sin).to(x.dtype),
        lambda x, cos, sin: rotated(x, cos, sin) * 0.5 + 1,
    ],
)
def test_spellings_become_one_operator(spelling):
    x, angles = torch.randn(1, 4, 3, 32).bfloat16(), torch.randn(3, 32)
    assert ops(assert_as_torch(spelling, x, angles.cos(), angles.sin())) == ["rotary"]


def test_a_part_of_each_row_may_be_turned():
    def turn(x, cos, sin):
        return torch.cat((rotated(x[..., :16], cos, sin), x[..., 16:]), -1)

    angles = torch.randn(3, 16)
    fast = assert_as_torch(turn, torch.randn(1, 4, 3, 48), angles.cos(), angles.sin())
    assert "rotary" in ops(fast)


@pytest.mark.parametrize(
    "other",
    [
        lambda x, cos, sin: x * cos - turned(x) * sin,
        lambda x, cos, sin: x * cos + torch.cat((x[..., 16:], x[..., :16]), -1) * sin,
        lambda x, cos, sin: x * cos + torch.cat((x[..., 16:], -x[..., :16]), -1) * sin,
        lambda x, cos, sin: x * cos + torch.cat((-x[..., :16], x[..., 16:]), -1) * sin,
        lambda x, cos, sin: x * cos + torch.cat((-x[..., 12:], x[..., :12]), -1) * sin,
        lambda x, cos, sin: x * cos + turned(x * 2) * sin,
        lambda x, cos, sin: x * cos + turned(sin.expand_as(x)) * x,
    ],
)
def test_what_is_almost_rotary_is_left_alone(other):
    angles = torch.randn(3, 32)
    fast = assert_as_torch(other, torch.randn(1, 4, 3, 32), angles.cos(), angles.sin())
    assert "rotary" not in ops(fast)


@pytest.mark.parametrize("part", ["turned", "product"])
def test_what_somebody_else_reads_is_kept(part):
    def turn(x, cos, sin):
        other = turned(x)
        product = other * sin
        return x * cos + product, {"turned": other, "product": product}[part]

    angles = torch.randn(3, 32)
    fast = assert_as_torch(turn, torch.randn(1, 4, 3, 32), angles.cos(), angles.sin())
    assert "rotary" not in ops(fast)


def test_rows_that_change_before_the_sum_are_read_before_they_change():
    def turn(x, cos, sin, rows, new):
        straight, other = x * cos, turned(x) * sin
        x.index_copy_(0, rows, new)
        return straight + other

    x, new, angles = torch.randn(4, 32), torch.randn(2, 32), torch.randn(32)
    inputs = angles.cos(), angles.sin(), torch.tensor([3, 1]), new
    fast = mkc.compile(turn, (x.clone(), *inputs), fallback="error")
    torch.testing.assert_close(fast(x.clone(), *inputs), turn(x.clone(), *inputs))
    assert "append" in ops(fast)


def test_reference_of_rotary_is_torchs():
    angles = torch.randn(3, 32)
    assert_reference_agrees(rotated, torch.randn(1, 4, 3, 32), angles.cos(), angles.sin())
