"""How close is close: results against float64, allowed what torch's own kernel of that dtype is off by, and a little more."""

from collections.abc import Callable
from typing import Any

import torch
from oracle import interpreted, machine
from torch.utils import _pytree as pytree

import mkc
from mkc.frontend.convert import convert
from mkc.frontend.trace import trace

FLOATS = (torch.float32, torch.bfloat16, torch.float16)
Function = Callable[..., Any]


def assert_close_to_float64(got: Any, fn: Function, *inputs: torch.Tensor, factor: float = 2.0) -> None:
    """`got` has the shapes and dtypes that `fn(*inputs)` has in torch, and is as near to `fn` computed in float64:

    |got - exact| <= factor max|eager - exact| + 2 eps |exact| for each element. Whatever is not a float must be equal,
    and so must what is infinite or not a number.
    """
    exact = _leaves(fn(*(x.double() if x.is_floating_point() else x for x in inputs)))
    for mine, eager, truth in zip(_leaves(got), _leaves(fn(*inputs)), exact, strict=True):
        assert mine.shape == eager.shape
        assert mine.dtype == eager.dtype
        if not eager.is_floating_point():
            assert torch.equal(mine, eager)
            continue
        finite = truth.isfinite() & eager.isfinite()
        torch.testing.assert_close(mine[~finite], eager[~finite], rtol=0, atol=0, equal_nan=True)
        error, own = ((t.double() - truth)[finite].abs() for t in (mine, eager))
        allowed = factor * _largest(own) + 2 * torch.finfo(eager.dtype).eps * truth[finite].abs()
        assert _largest(error - allowed) <= 0, (
            f"off by {_largest(error):g}; torch itself by {_largest(own):g}"
        )


def assert_as_torch(fn: Function, *inputs: torch.Tensor, factor: float = 2.0) -> Any:
    """`fn`, compiled whole and cut into many small tasks, computes what torch does."""
    fast = mkc.compile(fn, inputs, target=machine(5), fallback="error")
    assert_close_to_float64(fast(*inputs), fn, *inputs, factor=factor)
    return fast


def assert_reference_agrees(fn: Function, *inputs: torch.Tensor) -> None:
    """The operators' numpy references, run task by task, give what `fn` gives in torch."""
    meaning = interpreted([convert(trace(fn, inputs, {}))], machine(5))
    assert_close_to_float64(meaning(list(inputs))[0], fn, *inputs)


def _leaves(value: Any) -> list[torch.Tensor]:
    return pytree.tree_leaves(value)


def _largest(values: torch.Tensor) -> float:
    return values.max().item() if values.numel() else 0.0
