"""Traced -> Raised. Torch's calls become operators by their claims; after this, torch is not seen again."""

import operator
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from mkc.errors import UnsupportedError
from mkc.frontend.functional import CHECKS
from mkc.frontend.trace import Attribute, Traced, UserInput
from mkc.ir.builder import Builder
from mkc.ir.dtype import Array, DType
from mkc.ir.graph import Graph, Kind, Storage, Tensor
from mkc.ops import claims

_DTYPES: dict[torch.dtype, DType] = {getattr(torch, d.value): d for d in DType}
_TORCH = {d: t for t, d in _DTYPES.items()}


class UnsupportedNode(UnsupportedError):  # noqa: N818  (an error about a node)
    """A call that no operator claims, or whose claim refuses it."""

    def __init__(self, node: fx.Node, reason: str) -> None:
        self.node = node
        self.where = module_path(node)
        self.reason = reason
        at = f" (at {self.where})" if self.where else ""
        super().__init__(
            f'{reason}{at}; it runs in PyTorch unless fallback="error". See docs/adding-an-operator.md'
        )


@dataclass(frozen=True, slots=True)
class Raised:
    """A graph, and what its storages stand for in torch."""

    graph: Graph
    sources: dict[str, UserInput | Attribute]  # by storage name
    constants: dict[str, Array]  # raw bits, by storage name
    outputs: tuple[Any, ...]  # leaves: a Tensor of the graph, a UserInput handed back, or a constant
    out_spec: Any


def torch_dtype(dtype: DType) -> torch.dtype:
    return _TORCH[dtype]


def module_path(node: fx.Node) -> str:
    """Where in the model the call was made, such as `layers.0.attn`."""
    stack = node.meta.get("nn_module_stack") or {}
    paths = [entry[0] for entry in stack.values() if entry[0]]
    return _trimmed(paths[-1]) if paths else ""


def _trimmed(path: str) -> str:
    path = path.removeprefix("L['self'].").removeprefix("model.model.") if path.startswith("L[") else path
    return path.removeprefix("model.") if path.startswith("model.") else path


def convert(traced: Traced, name: str = "graph", loops: bool = False, until: int | None = None) -> Raised:
    """Raise the whole graph. `until` is the index of a user input that ends a loop. Raises UnsupportedNode."""
    raiser = _Raiser(traced, name)
    for node in traced.module.graph.nodes:
        raiser.visit(node)
    return raiser.finish(loops, until)


def problem(node: fx.Node) -> str | None:
    """Why this call cannot be raised, as far as can be told without raising it."""
    if node.target is operator.getitem or str(node.target) in CHECKS:
        return None
    if str(node.target) not in claims():
        return f"no operator claims {_public_name(node)}"
    for value in _tensors(node):
        if value.dtype not in _DTYPES:
            return f"{_public_name(node)} on {str(value.dtype).removeprefix('torch.')}, which mkc does not compute with"
        if any(not isinstance(n, int) for n in value.shape):
            return f"{_public_name(node)} on a shape that is only known at run time"
        if value.numel() == 0:
            return f"{_public_name(node)} on a tensor without elements"
        if value.layout is not torch.strided or value.is_complex():
            return f"{_public_name(node)} on a sparse or complex tensor"
    return None


def _tensors(node: fx.Node) -> list[torch.Tensor]:
    """The values a call takes and gives."""
    met = [node.meta.get("val"), *(n.meta.get("val") for n in node.all_input_nodes)]
    return [t for value in met for t in (value if isinstance(value, list | tuple) else [value]) if isinstance(t, torch.Tensor)]


def _public_name(node: fx.Node) -> str:
    return "torch." + str(node.target).removeprefix("aten.").rpartition(".")[0]


class _Raiser:
    """Visits torch's nodes in order and keeps the tensor that each became."""

    def __init__(self, traced: Traced, name: str) -> None:
        self.traced = traced
        self.builder = Builder(name)
        self.values: dict[fx.Node, Any] = {}
        self.views: dict[Storage, list[fx.Node]] = {}  # who has a value in each memory
        self.sources: dict[str, UserInput | Attribute] = {}
        self.order = {node: i for i, node in enumerate(traced.module.graph.nodes)}
        self.last_seen = {node: max((self.order[u] for u in node.users), default=-1) for node in self.order}

    def visit(self, node: fx.Node) -> None:
        if node.op == "placeholder":
            self._placeholder(node)
        elif node.op == "call_function":
            self._call(node)
        elif node.op == "get_attr":
            self._attribute(node)
        value = self.values.get(node)
        for tensor in value if isinstance(value, tuple) else (value,):
            if isinstance(tensor, Tensor):
                self.views.setdefault(tensor.storage, []).append(node)

    def _placeholder(self, node: fx.Node) -> None:
        source, value = self.traced.sources[node], node.meta.get("val")
        if not isinstance(value, torch.Tensor):
            self.values[node] = value  # a number or None that the trace was specialised on
            return
        if node in self.traced.mutated:
            kind = Kind.STATE
        else:
            kind = Kind.INPUT if isinstance(source, UserInput) else Kind.PARAM
        if node.users or kind is not Kind.PARAM:
            name = f"in{source.index}" if isinstance(source, UserInput) else f"self.{source.name}"
            self._bind(node, name, kind, source, value)

    def _attribute(self, node: fx.Node) -> None:
        tensor = operator.attrgetter(str(node.target))(self.traced.module)
        if isinstance(tensor, torch.Tensor):
            self._bind(node, f"self.{node.target}", Kind.PARAM, Attribute(str(node.target), tensor), tensor)

    def _bind(
        self, node: fx.Node, name: str, kind: Kind, source: UserInput | Attribute, value: torch.Tensor
    ) -> None:
        if value.dtype not in _DTYPES or value.numel() == 0:
            if node.users:
                raise UnsupportedNode(next(iter(node.users)), problem(next(iter(node.users))) or f"{value.dtype}")
            return
        strides = tuple(source.tensor.stride()) if isinstance(source, Attribute) else None
        self.values[node] = self.builder.input(name, tuple(value.shape), _DTYPES[value.dtype], kind, strides)
        self.sources[name] = source

    def _call(self, node: fx.Node) -> None:
        if str(node.target) in CHECKS:
            return
        if node.target is operator.getitem:
            source, index = node.args
            assert isinstance(source, fx.Node)
            self.values[node] = self.values[source][index]
            return
        reason = problem(node)
        if reason:
            raise UnsupportedNode(node, reason)
        value = node.meta["val"]
        if isinstance(value, torch.Tensor):
            self.builder.shape, self.builder.dtype = tuple(value.shape), _DTYPES[value.dtype]
        self.builder.path = module_path(node)
        self.builder.last_use = self._is_last_use(node)
        args, kwargs = fx.node.map_aggregate((node.args, dict(node.kwargs)), self._argument)
        try:
            self.values[node] = claims()[str(node.target)](self.builder, *args, **kwargs)
        except UnsupportedError as error:
            raise UnsupportedNode(node, f"{_public_name(node)}: {error}") from error
        except TypeError as error:
            raise UnsupportedNode(node, f"{_public_name(node)} with these arguments ({error})") from error

    def _argument(self, value: Any) -> Any:
        if isinstance(value, fx.Node):
            return self.values[value]
        return _DTYPES.get(value, value) if isinstance(value, torch.dtype) else value

    def _is_last_use(self, node: fx.Node) -> bool:
        """True when nothing after this call looks at the memory of its first argument as it was."""
        first = node.args[0] if node.args else None
        if not isinstance(first, fx.Node) or not isinstance(self.values.get(first), Tensor):
            return False
        views = self.views[self.values[first].storage]
        return all(self.last_seen[view] <= self.order[node] for view in views)

    def finish(self, loops: bool, until: int | None) -> Raised:
        self.builder.path = ""
        results = [self._result(leaf) for leaf in self.traced.outputs]
        self._write_states()
        tensors = [r for r in results if isinstance(r, Tensor)]
        stop = next((self.values[n] for n, s in self.traced.sources.items() if s == UserInput(-1 if until is None else until)), None)
        graph = self.builder.finish(tuple(tensors), loops, stop if until is not None else None)
        moved = iter(graph.outputs)
        outputs = tuple(next(moved) if isinstance(r, Tensor) else r for r in results)
        return Raised(graph, self.sources, self.builder.constants, outputs, self.traced.out_spec)

    def _result(self, leaf: Any) -> Any:
        """An output leaf: the caller's own tensor when it was changed in place and handed back."""
        if not isinstance(leaf, fx.Node):
            return leaf
        for holder, value in self.traced.mutated.items():
            source = self.traced.sources[holder]
            if value is leaf and isinstance(source, UserInput):
                return source
        tensor = self.values[leaf]
        if not isinstance(tensor, Tensor):
            return tensor
        return tensor if tensor.storage.kind is Kind.ARENA else self.builder.copy(tensor)

    def _write_states(self) -> None:
        """Values that a mutated input must hold in the end; those that were written in place are there already."""
        pending: list[tuple[Tensor, Tensor]] = []
        for holder, node in self.traced.mutated.items():
            state, value = self.values[holder], self.values[node]
            if value == state:
                continue
            pending.append((self.builder.copy(value) if value.storage.kind is Kind.STATE else value, state))
        for value, state in pending:
            self.builder.copy(value.view(value.layout.expand(state.shape)), state)

