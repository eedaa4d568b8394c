"""mkc: a task-graph megakernel compiler. It turns a PyTorch model into one persistent kernel."""

from mkc.api import compile  # noqa: A004  (as in torch.compile)
from mkc.errors import (
    BuildError,
    InputError,
    MegakernelHang,
    MkcError,
    ModelError,
    OptionError,
    PlanError,
    TargetError,
    UnsupportedError,
)

__version__ = "0.1.0"

__all__ = [
    "BuildError",
    "InputError",
    "MegakernelHang",
    "MkcError",
    "ModelError",
    "OptionError",
    "PlanError",
    "TargetError",
    "UnsupportedError",
    "compile",
]
