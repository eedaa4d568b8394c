"""The backend `torch.compile(model, backend="mkc")` finds: Dynamo's graph in, a callable out."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import fx

from mkc import config, targets
from mkc.frontend.convert import UnsupportedNode, convert
from mkc.frontend.executable import Executable
from mkc.frontend.module import options as read_options
from mkc.frontend.partition import Segmented
from mkc.frontend.trace import trace_graph_module


def backend(
    module: fx.GraphModule, example_inputs: Sequence[torch.Tensor], *, mode: str | None = None, options: dict[str, Any] | None = None
) -> Callable[..., Any]:
    """Compile a graph for inference. Symbolic sizes and anything unclaimed stay in PyTorch."""
    chosen = read_options(**(options or {}))
    if not all(isinstance(x, torch.Tensor) for x in example_inputs):
        return module.forward
    device = example_inputs[0].device if example_inputs else torch.device("cpu")
    target = targets.named(device.type, device.index, chosen.workers or config.workers())
    with torch.no_grad():
        traced = trace_graph_module(module, [_real(x) for x in example_inputs])
    try:
        run: Executable | Segmented = Executable([convert(traced, "dynamo")], target, device, chosen.policy)
    except UnsupportedNode:
        if chosen.fallback == "error":
            raise
        run = Segmented(traced, target, device, chosen.policy)
    return lambda *args: run(args)[0]


def _real(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach() if tensor.requires_grad else tensor
