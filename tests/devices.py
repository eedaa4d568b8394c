"""Where tests run: on the host, and on a GPU where there is one."""

from collections.abc import Callable
from typing import Any

import pytest

from mkc.targets import cuda

_GPU = (pytest.mark.gpu, pytest.mark.skipif(cuda.device_count() == 0, reason="no GPU"))
EVERYWHERE = ("cpu", pytest.param("cuda", marks=_GPU))


def on_gpu(test: Callable[..., Any]) -> Callable[..., Any]:
    """A test that means nothing without a GPU."""
    for mark in _GPU:
        test = mark(test)
    return test
