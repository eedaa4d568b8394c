"""The interpreter as a target: what tests compare kernels, plans and orders with. No compiler is needed."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from random import Random
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import nn

from mkc.frontend.convert import Raised, convert
from mkc.frontend.executable import Executable
from mkc.frontend.packing import packed
from mkc.frontend.trace import trace
from mkc.ir.dtype import Array
from mkc.ir.graph import Graph, Kind
from mkc.ir.target import Target
from mkc.passes.encode import encode
from mkc.passes.link import link
from mkc.passes.place import place
from mkc.passes.schedule import schedule
from mkc.passes.signal import signal
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


def computed(graph: Graph, target: Target, values: Mapping[str, Array], order: Random | None = None) -> dict[str, Array]:
    """What the caller's memory holds after a run of the graph, by name. Values are rounded to the tensors' types."""
    plan = schedule(signal(link(tile(place(graph), target))), target)
    program = encode([plan])
    tensors = {t.storage.name: t for node in graph.nodes for t in (*node.inputs, *node.outputs)}
    memory = [np.zeros(slot.nbytes, np.uint8) for slot in program.slots]
    for slot, words in zip(program.slots, memory, strict=True):
        if slot.name in values:
            words[:] = np.ascontiguousarray(tensors[slot.name].dtype.encode(values[slot.name])).reshape(-1).view(np.uint8)
        if slot.kind is Kind.PACKED and program.streams:
            words[:] = packed(program.streams, lambda t: _parameter(values[t.storage.name]), torch.device("cpu")).numpy()
    Interpreter(program, [plan.events.tasks], order).run(memory, [1])
    named = {slot.name: words for slot, words in zip(program.slots, memory, strict=True) if slot.name in tensors}
    return {name: tensors[name].dtype.decode(words.view(tensors[name].dtype.bits)) for name, words in named.items()}


def _parameter(values: Array) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(values, np.float32)).to(torch.bfloat16)
