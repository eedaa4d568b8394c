"""A forward that looks at what it holds takes the branch that it takes in PyTorch."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import mkc


def on_a_tuple(x: Tensor) -> Tensor:
    parts = torch.chunk(x, 2)
    return parts[0] + 1 if isinstance(parts, tuple) else x * 100


def on_a_result(x: Tensor) -> Tensor:
    y = torch.sin(x)
    return y + 1 if isinstance(y, Tensor) else x * 100


def on_a_shape(x: Tensor) -> Tensor:
    return x + 1 if isinstance(x.shape[0], int) else x * 100


def on_an_attribute(x: Tensor) -> Tensor:
    return x * 100 if hasattr(x, "weights") else x + 1


def on_an_exact_type(x: Tensor) -> Tensor:
    return x + 1 if type(x) is Tensor else x * 100


UNSEEN = pytest.param(on_an_exact_type, marks=pytest.mark.xfail(reason="torch.export, too, traces with a subclass of Tensor"))


@pytest.mark.parametrize("forward", [on_a_tuple, on_a_result, on_a_shape, on_an_attribute, UNSEEN])
def test_a_branch_on_what_a_value_is(forward: Callable[[Tensor], Tensor]) -> None:
    x = torch.arange(6.0)
    torch.testing.assert_close(mkc.compile(forward)(x), forward(x))
