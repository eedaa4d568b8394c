"""The interpreter as a target: what tests compare kernels, plans and orders with. No compiler is needed."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from random import Random
from typing import Any
from unittest import mock

import torch
from torch import nn

from mkc.frontend.convert import Raised, convert
from mkc.frontend.executable import Executable
from mkc.frontend.trace import trace
from mkc.ir.target import Target
from mkc.passes.tile import tile
from mkc.targets.interpreter import Interpreter

torch.set_num_threads(1)


def machine(workers: int, bytes_per_ns: float = 20.0, streams: bool = False) -> Target:
    """A host on which handing work over costs nothing, so that small tensors are cut too."""
    scratch = (227 if streams else 32) * 1024  # streams need room for a ring of weights
    return Target("cpu", "any", workers, 1, scratch, bytes_per_ns, 20.0, task_ns=1.0, event_ns=1.0, streams=streams)


@contextmanager
def cut_for(workers: int) -> Iterator[None]:
    """Operators are cut for so many workers, however many there are to run the tasks."""

    def wide(graph: Any, target: Target) -> Any:
        return tile(graph, replace(target, workers=workers))

    with mock.patch("mkc.compiler.tile", wide):
        yield


def raised(model: nn.Module, *inputs: torch.Tensor, loops: bool = False, until: int | None = None) -> Raised:
    return convert(trace(model, inputs, {}), type(model).__name__, loops, until)


def interpreted(
    graphs: Sequence[Raised], target: Target, policy: str = "static", order: Random | None = None
) -> Executable:
    """As the real thing, but nothing is built: the interpreter runs the plan, in the order drawn from `order`."""
    executable = Executable(graphs, target, torch.device("cpu"), policy)
    compilation = executable.compilation
    executable.kernel = Interpreter(compilation.program, [s.tasks for s in compilation.sections], order)
    return executable
