"""Division and remainder of integers, rounded down as Python does, by numbers that are known."""

import pytest
import torch
from numerics import assert_as_torch, assert_reference_agrees

import mkc


def divided(x):
    return [x // 7, x % 7, x // -7, x % -7, torch.div(x, 16, rounding_mode="floor"), torch.remainder(x, 16), x % 1]


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32])
def test_integers_are_divided_and_rounded_down(dtype):
    x = torch.cat([torch.arange(-50, 50), torch.tensor([2**31 - 1, -(2**31)])]).to(dtype)
    assert_as_torch(divided, x)
    assert_reference_agrees(divided, x)


@pytest.mark.parametrize("by", [lambda x: x // 0, lambda x: x % 0, lambda x: x % x, lambda x: x.float() % 3])
def test_what_a_processor_may_stop_at_is_refused(by):
    with pytest.raises(mkc.UnsupportedError, match="anything but a number that is known and not zero"):
        mkc.compile(lambda x: by(x) + 1, torch.arange(4), fallback="error")
