"""Views that cost nothing, and those that repeat what they show."""

import torch
from numerics import assert_as_torch


def test_repetitions_are_torchs():
    def repeated(x, y):
        each = x.repeat_interleave(2, dim=-1), x.repeat_interleave(3, dim=0), y.repeat_interleave(2)
        return *each, x.repeat(1, 2), x.repeat(2, 1, 3), y.transpose(0, 1).repeat(2, 2), y.transpose(0, 1).repeat_interleave(2, dim=1)

    assert_as_torch(repeated, torch.randn(3, 4), torch.randn(2, 5))


def test_parts_without_elements_are_left_out():
    def parts(x):
        return torch.cat([x[:, :4] + 1, x[:, 4:]], -1), torch.cat([x[:0], x * 2, x[3:], x])

    assert_as_torch(parts, torch.randn(3, 4))
