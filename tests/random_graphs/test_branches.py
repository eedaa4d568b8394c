"""A forward that looks at what it holds takes the branch that it takes in PyTorch."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

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


def on_equal_types(x: Tensor) -> Tensor:
    return x + 1 if type(x) == Tensor else x * 100  # noqa: E721


def on_a_class(x: Tensor) -> Tensor:
    return x + 1 if x.__class__ is Tensor else x * 100


def on_the_type_of_a_result(x: Tensor) -> Tensor:
    return x + 1 if type(torch.sin(x)) in (Tensor, nn.Parameter) else x * 100


def on_the_name_of_a_type(x: Tensor) -> Tensor:
    return x + 1 if type(x).__name__ == "Tensor" else x * 100


def on_a_parameter(x: Tensor) -> Tensor:
    return x * 100 if isinstance(x, nn.Parameter) else x + 1


def on_a_subclass(x: Tensor) -> Tensor:
    return x * 100 if isinstance(x, Special) else x + 1


def on_being_a_tensor(x: Tensor) -> Tensor:
    return x + 1 if torch.is_tensor(x) else x * 100


class Special(Tensor):
    """A kind of tensor that only a user knows."""


FORWARDS = [
    on_a_tuple, on_a_result, on_a_shape, on_an_attribute, on_an_exact_type, on_equal_types, on_a_class,
    on_the_type_of_a_result, on_the_name_of_a_type, on_a_parameter, on_a_subclass, on_being_a_tensor,
]  # fmt: skip


@pytest.mark.parametrize("forward", FORWARDS)
def test_a_branch_on_what_a_value_is(forward: Callable[[Tensor], Tensor]) -> None:
    x = torch.arange(6.0)
    torch.testing.assert_close(mkc.compile(forward)(x), forward(x))


@pytest.mark.parametrize("forward", [on_an_exact_type, on_a_parameter, on_a_subclass])
@pytest.mark.parametrize("kind", [nn.Parameter, Special])
def test_a_branch_is_that_of_the_tensor_in_hand(forward: Callable[[Tensor], Tensor], kind: Callable[[Tensor], Tensor]) -> None:
    fast = mkc.compile(forward)
    fast(torch.arange(6.0))  # the same shape, of another kind
    x = kind(torch.arange(6.0))
    with torch.no_grad():
        torch.testing.assert_close(fast(x), forward(x).as_subclass(Tensor))


class Asking(nn.Module):
    """A layer that hides in torch's own modules."""

    def forward(self, x: Tensor) -> Tensor:
        return on_an_exact_type(x)


def ask(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
    return on_an_exact_type(output)


def test_a_branch_in_a_layer_a_hook_or_a_replaced_forward() -> None:
    x = torch.arange(6.0)
    hooked, replaced = nn.ReLU(), nn.ReLU()
    hooked.register_forward_hook(ask)
    replaced.forward = on_an_exact_type
    for model in (nn.Sequential(nn.ReLU(), Asking()), nn.Sequential(hooked), nn.Sequential(replaced)):
        torch.testing.assert_close(mkc.compile(model.eval())(x), model(x))
