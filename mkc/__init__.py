"""mkc: a task-graph megakernel compiler. It turns a PyTorch model into one persistent kernel."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from mkc.api import compile  # noqa: A004  (as in torch.compile)
from mkc.errors import (
    BuildError,
    InputError,
    MagnitudeError,
    MegakernelHang,
    MkcError,
    ModelError,
    OptionError,
    OutOfRangeError,
    PlanError,
    TargetError,
    UnsoundPlan,
    UnsupportedError,
)
from mkc.explain import explain
from mkc.ir.choices import Choices

__version__ = "0.1.0"

if TYPE_CHECKING:
    from mkc.lm import CausalLM


def __getattr__(name: str) -> Any:
    """`CausalLM` needs transformers, which takes seconds to import: only who asks for it waits."""
    if name == "CausalLM":
        return import_module("mkc.lm").CausalLM
    raise AttributeError(f"module 'mkc' has no attribute {name!r}")


__all__ = [
    "BuildError",
    "CausalLM",
    "Choices",
    "InputError",
    "MagnitudeError",
    "MegakernelHang",
    "MkcError",
    "ModelError",
    "OptionError",
    "OutOfRangeError",
    "PlanError",
    "TargetError",
    "UnsoundPlan",
    "UnsupportedError",
    "compile",
    "explain",
]
