"""How close is close: results against float64, allowed what torch's own kernel of that dtype is off by, and a little more.

With MKC_TEST_DEVICE=cuda what goes through `assert_as_torch` runs on the GPU; the reference stays on the host.
"""

import os
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from oracle import interpreted, machine
from torch.utils import _pytree as pytree

import mkc
from mkc import targets
from mkc.frontend.convert import convert
from mkc.frontend.trace import trace
from mkc.numerics import allowed, largest

FLOATS = (torch.float32, torch.bfloat16, torch.float16)
Function = Callable[..., Any]
DEVICE = os.environ.get("MKC_TEST_DEVICE", "cpu")


def assert_close_to_float64(got: Any, fn: Function, *inputs: torch.Tensor, factor: float = 2.0) -> None:
    """`got` has the shapes and dtypes that `fn(*inputs)` has in torch, and is as near to `fn` computed in float64:

    to within `mkc.numerics.allowed` for each element. Whatever is not a float must be equal,
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
        assert (error <= allowed(eager[finite], truth[finite], factor)).all(), (
            f"off by {largest(error):g}; torch itself by {largest(own):g}"
        )


def assert_as_torch(fn: Function, *inputs: torch.Tensor, factor: float = 2.0) -> Any:
    """`fn`, compiled whole and cut into many small tasks, computes what torch does."""
    fast = _Elsewhere(fn, inputs) if DEVICE != "cpu" else mkc.compile(fn, inputs, target=machine(5), fallback="error")
    assert_close_to_float64(fast(*inputs), fn, *inputs, factor=factor)
    return fast


def assert_reference_agrees(fn: Function, *inputs: torch.Tensor) -> None:
    """The operators' numpy references, run task by task, give what `fn` gives in torch."""
    meaning = interpreted([convert(trace(fn, inputs, {}))], machine(5))
    assert_close_to_float64(meaning(list(inputs))[0], fn, *inputs)


class _Elsewhere:
    """A function compiled for another device, called with tensors of the host, cut into many small tasks."""

    def __init__(self, fn: Function, inputs: tuple[torch.Tensor, ...]) -> None:
        cheap = replace(targets.named(DEVICE), task_ns=1.0, event_ns=1.0)
        self.fast = mkc.compile(fn, _moved(inputs, DEVICE), target=cheap, fallback="error")

    def __call__(self, *inputs: torch.Tensor) -> Any:
        return _moved(self.fast(*_moved(inputs, DEVICE)), "cpu")

    def __getattr__(self, name: str) -> Any:
        return getattr(self.fast, name)


def _moved(value: Any, device: str) -> Any:
    return pytree.tree_map(lambda x: x.to(device) if isinstance(x, torch.Tensor) else x, value)


def _leaves(value: Any) -> list[torch.Tensor]:
    return pytree.tree_leaves(value)
