"""Traced -> a callable that runs what operators claim as kernels and the rest in PyTorch."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx
from torch.fx.passes.infra.partitioner import CapabilityBasedPartitioner
from torch.fx.passes.operator_support import OperatorSupportBase
from torch.utils import _pytree as pytree

from mkc.frontend.convert import UnsupportedNode, convert, module_path, problem
from mkc.frontend.executable import Executable
from mkc.frontend.trace import Attribute, Traced, UserInput
from mkc.ir.target import Target


@dataclass(frozen=True, slots=True)
class Fallback:
    """A call that stayed in PyTorch."""

    node: str
    path: str
    reason: str

    def __str__(self) -> str:
        return f"{self.node}{f' at {self.path}' if self.path else ''}: {self.reason}"


class Segmented:
    """A model cut around what is not supported. Same call as an Executable of one graph."""

    def __init__(self, traced: Traced, target: Target, device: torch.device, policy: str) -> None:
        self.traced = traced
        self.fallbacks: list[Fallback] = []
        self.executables: list[Executable] = []
        self._refused: dict[str, str] = {}
        self._module = self._cut(target, device, policy)

    def build(self) -> None:
        """Build every kernel now. Raises BuildError, TargetError."""
        for executable in self.executables:
            executable.build()

    def __call__(self, leaves: Sequence[Any]) -> list[Any]:
        """One run over the flattened arguments."""
        with torch.no_grad():
            placeholders = self.traced.module.graph.find_nodes(op="placeholder")
            inputs = [self._value(self.traced.sources[node], leaves) for node in placeholders]
            values = self._module(*inputs)
            for holder, value in zip(self.traced.mutated, values, strict=False):
                self._value(self.traced.sources[holder], leaves).copy_(value)
            given = iter(values[len(self.traced.mutated) :])
            results = [next(given) if isinstance(leaf, fx.Node) else leaf for leaf in self.traced.outputs]
            return [pytree.tree_unflatten(results, self.traced.out_spec)]

    def _value(self, source: UserInput | Attribute, leaves: Sequence[Any]) -> Any:
        return leaves[source.index] if isinstance(source, UserInput) else source.tensor

    def _cut(self, target: Target, device: torch.device, policy: str) -> fx.GraphModule:
        """Partition, compile every part; a part whose claim refuses a call is cut again without that call."""
        while True:
            module = _functional(self.traced)
            reasons = {n: r for n in module.graph.nodes if (r := self._reason(n))}
            partitioner = CapabilityBasedPartitioner(module, _Support(reasons), allows_single_node_partition=True)
            fused = partitioner.fuse_partitions(partitioner.propose_partitions(), prefix="mkc_")
            try:
                self.executables = [
                    self._compile(fused, node, target, device, policy) for node in _parts(fused)
                ]
            except UnsupportedNode as error:
                self._refused[error.node.name] = error.reason
                continue
            self.fallbacks = [Fallback(str(n.target), module_path(n), r) for n, r in reasons.items()]
            fused.recompile()
            return fused

    def _reason(self, node: fx.Node) -> str | None:
        return (self._refused.get(node.name) or problem(node)) if node.op == "call_function" else None

    def _compile(self, module: fx.GraphModule, node: fx.Node, target: Target, device: torch.device, policy: str) -> Executable:
        part = getattr(module, str(node.target))
        executable = Executable([convert(_traced_part(part, node), str(node.target))], target, device, policy)
        setattr(module, str(node.target), _Call(executable, single=not isinstance(_output(part), tuple | list)))
        return executable


class _Call(torch.nn.Module):
    """A kernel as a submodule of the cut graph."""

    def __init__(self, executable: Executable, single: bool) -> None:
        super().__init__()
        self.executable = executable
        self.single = single

    def forward(self, *args: torch.Tensor) -> Any:
        (results,) = self.executable(args)
        return results[0] if self.single else tuple(results)


class _Support(OperatorSupportBase):
    def __init__(self, reasons: dict[fx.Node, str]) -> None:
        self.reasons = reasons

    def is_node_supported(self, submodules: Any, node: fx.Node) -> bool:
        return node.op == "call_function" and node not in self.reasons


def _functional(traced: Traced) -> fx.GraphModule:
    """A copy of the graph that returns the values of mutated inputs first, then the outputs that are nodes."""
    copied: dict[fx.Node, fx.Node] = {}
    graph = fx.Graph()
    for node in traced.module.graph.nodes:
        if node.op != "output":
            copied[node] = graph.node_copy(node, copied.__getitem__)
    leaves = [*traced.mutated.values(), *(leaf for leaf in traced.outputs if isinstance(leaf, fx.Node))]
    graph.output(tuple(copied[leaf] for leaf in leaves))
    graph.eliminate_dead_code()
    return fx.GraphModule(traced.module, graph)


def _parts(module: fx.GraphModule) -> list[fx.Node]:
    return [n for n in module.graph.nodes if n.op == "call_module" and str(n.target).startswith("mkc_")]


def _output(part: fx.GraphModule) -> Any:
    (node,) = part.graph.find_nodes(op="output")
    return node.args[0]


def _traced_part(part: fx.GraphModule, node: fx.Node) -> Traced:
    """A part as if it had been traced: every placeholder is an argument, nothing is mutated."""
    placeholders = part.graph.find_nodes(op="placeholder")
    for inner, outer in zip(placeholders, node.args, strict=True):
        assert isinstance(outer, fx.Node)
        inner.meta.setdefault("val", outer.meta.get("val"))
    outputs = _output(part)
    leaves = tuple(outputs) if isinstance(outputs, tuple | list) else (outputs,)
    _, spec = pytree.tree_flatten(list(range(len(leaves))))
    sources: dict[fx.Node, UserInput | Attribute] = {n: UserInput(i) for i, n in enumerate(placeholders)}
    return Traced(part, sources, {}, leaves, spec)
