"""The backend `torch.compile(model, backend="mkc")` finds: Dynamo's graph in, a callable out."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import fx
from torch._guards import tracing

from mkc.frontend.convert import UnsupportedNode, convert
from mkc.frontend.executable import Executable
from mkc.frontend.module import Compiled, target_for
from mkc.frontend.module import options as read_options
from mkc.frontend.partition import Segmented
from mkc.frontend.trace import trace_graph_module


def backend(
    module: fx.GraphModule, example_inputs: Sequence[torch.Tensor], *, mode: str | None = None, options: dict[str, Any] | None = None
) -> Callable[..., Any]:
    """Compile a graph for inference. Calls that nothing claims stay in PyTorch."""
    chosen = read_options(**(options or {}))
    if not all(isinstance(x, torch.Tensor) and all(isinstance(n, int) for n in x.shape) for x in example_inputs):
        return Compiled(module.forward, chosen)  # sizes are symbols: specialised when they are known
    device = example_inputs[0].device if example_inputs else torch.device("cpu")
    target = target_for(chosen, device)
    with torch.no_grad(), tracing(None):  # Dynamo's own tracing would make every size of the stand-ins symbolic
        traced = trace_graph_module(module, [_stand_in(x) for x in example_inputs])
    try:
        run: Executable | Segmented = Executable([convert(traced, "dynamo")], target, device, chosen.policy)
    except UnsupportedNode:
        if chosen.fallback == "error":
            raise
        run = Segmented(traced, target, device, chosen.policy)
    return lambda *args: run(args)[0]


def _stand_in(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor like a fake one, without its memory."""
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=tensor.device)
