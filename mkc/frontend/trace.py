"""nn.Module or function, inputs -> Traced. Torch's view of the model: a functional graph of ATen calls, shapes known."""

import inspect
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import CellType
from typing import Any

import torch
from torch import fx, nn
from torch._functorch.aot_autograd import aot_export_module
from torch.export.graph_signature import InputKind, OutputKind
from torch.fx import config as fx_config
from torch.fx import traceback
from torch.fx._lazy_graph_module import _use_lazy_graph_module
from torch.utils import _pytree as pytree

from mkc import garbage
from mkc.errors import ModelError
from mkc.frontend.functional import functional
from mkc.ops import claims

Leaf = Any  # of an argument pytree: a tensor, a number, None
TORCH = ("torch.nn.modules.",)
LIBRARIES = (*TORCH, "torch.fx.", "transformers.", "mkc.")  # never ask a tensor for its exact type: looked up, November 2026


@dataclass(frozen=True, slots=True)
class UserInput:
    """The leaf at `index` of the flattened arguments."""

    index: int


@dataclass(frozen=True, slots=True)
class Attribute:
    """A parameter, buffer or constant of the module."""

    name: str
    tensor: torch.Tensor


@dataclass(frozen=True, slots=True)
class Traced:
    """A functional graph and what its placeholders and outputs stand for.

    `sources` has an entry for each placeholder. `mutated` maps a placeholder to the node whose value it must hold
    after a run. `outputs` are the leaves of the result: nodes, or constants as they are.
    """

    module: fx.GraphModule
    sources: dict[fx.Node, UserInput | Attribute]
    mutated: dict[fx.Node, fx.Node]
    outputs: tuple[Leaf, ...]
    out_spec: pytree.TreeSpec


@garbage.rests()
def trace(model: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Traced:
    """Symbolic tracing of torch's own modules, `torch.export` of everything else. Raises ModelError.

    What stands in for a tensor while a forward runs is no plain `Tensor`, so a forward that asks for types could silently
    take another branch than in PyTorch. So only code that is known not to ask is run on stand-ins: of torch's modules on
    symbols, of a few libraries on fake tensors. Anybody else's is read by Dynamo, which knows what the types would be.
    """
    module = model if isinstance(model, nn.Module) else _Function(model)
    args, kwargs = _apart((args, kwargs))
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if not kwargs and _written_by(TORCH, module) and all(isinstance(a, torch.Tensor) for a in args):
            try:
                return trace_graph_module(_symbolic(module), args)
            except Exception:  # noqa: BLE001  whatever stopped it, export is the judge
                pass
        return _export(module, args, kwargs, strict=not _written_by(LIBRARIES, module))


def trace_graph_module(module: nn.Module, args: Sequence[torch.Tensor]) -> Traced:
    """A module that is known to be a graph of torch calls, lowered to functional ATen calls."""
    flat = _Flat(module)
    graph_module, signature = aot_export_module(flat, tuple(args), trace_joint=False, pre_dispatch=True)
    assert isinstance(graph_module, fx.GraphModule)
    assert flat.spec is not None
    by_name = {node.name: node for node in graph_module.graph.nodes}
    names = {
        **signature.inputs_to_parameters,
        **signature.inputs_to_buffers,
    }
    sources: dict[fx.Node, UserInput | Attribute] = {}
    known: dict[int, Attribute] = {}  # a tied weight goes by its first name
    for node in graph_module.graph.find_nodes(op="placeholder"):
        name = names.get(node.name)
        if name is None:
            sources[node] = UserInput(list(signature.user_inputs).index(node.name))
        else:
            found = _attribute(flat, name)
            sources[node] = known.setdefault(id(found.tensor), found)
    holders = {name: by_name[placeholder] for placeholder, name in names.items()}
    mutated = {holders[target]: by_name[name] for name, target in signature.buffers_to_mutate.items()}
    mutated |= {by_name[target]: by_name[name] for name, target in signature.user_inputs_to_mutate.items()}
    outputs = [by_name[name] for name in signature.user_outputs]
    _drop_empty_parts(graph_module.graph)
    return Traced(graph_module, sources, mutated, tuple(outputs), flat.spec)


def _drop_empty_parts(graph: fx.Graph) -> None:
    """What a `cat` puts side by side has elements: a rotation of the first dims of a head may leave none of them alone."""
    for node in graph.find_nodes(op="call_function", target=torch.ops.aten.cat.default):
        parts = [part for part in node.args[0] if part.meta["val"].numel()]
        node.args = (parts or node.args[0], *node.args[1:])
    for node in reversed(graph.nodes):
        if node.op == "call_function" and not node.users and _is_empty(node.meta.get("val")):
            graph.erase_node(node)


def _is_empty(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.numel() == 0


def _apart(arguments: Any) -> Any:
    """The same arguments with no two tensors in one memory: what is traced must not depend on who shares with whom."""
    seen: set[int] = set()

    def alone(leaf: Leaf) -> Leaf:
        if not isinstance(leaf, torch.Tensor):
            return leaf
        storage = leaf.untyped_storage()
        memory = storage._cdata if leaf.is_meta else storage.data_ptr()  # meta tensors have no address
        if memory in seen:
            return leaf.clone()
        seen.add(memory)
        return leaf

    return pytree.tree_map(alone, arguments)


class _Function(nn.Module):
    """A function as a module, so that everything below has modules only."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self._function = function
        self.forward = function  # keeps the signature for the tracers
        self.captured = nn.ModuleList(_captured(function))  # under names, by which torch.export looks for their tensors


def _captured(function: Callable[..., Any]) -> list[nn.Module]:
    """Modules that a function finds in its closure or among its globals."""
    inner = inspect.unwrap(function)
    code = getattr(inner, "__code__", None)
    if code is None:
        return []
    found = [cell.cell_contents for cell in inner.__closure__ or () if cell != CellType()]
    found += [inner.__globals__[name] for name in code.co_names if name in inner.__globals__]
    return [value for value in found if isinstance(value, nn.Module)]


class _Flat(nn.Module):
    """A module whose result is a flat tuple of tensors; remembers the shape it had."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.model = module
        self.spec: pytree.TreeSpec | None = None

    def forward(self, *args: torch.Tensor) -> tuple[Any, ...]:
        with traceback.preserve_node_meta():  # whose module paths the interpreter hands on, node by node
            run = fx.Interpreter(self.model).run if isinstance(self.model, fx.GraphModule) else self.model
            leaves, self.spec = pytree.tree_flatten(run(*args))
        if not all(isinstance(leaf, torch.Tensor) for leaf in leaves):
            raise ModelError("a result that is not a tensor")
        return tuple(leaves)


class _Tracer(fx.Tracer):
    """Buffers become graph nodes, so that writing one while tracing is recorded instead of done."""

    proxy_buffer_attributes = True


def _symbolic(module: nn.Module) -> fx.GraphModule:
    return fx.GraphModule(module, _Tracer().trace(module))


def _written_by(packages: tuple[str, ...], module: nn.Module) -> bool:
    """Whether these packages wrote every forward, and nobody has hung a hook of his own on one."""
    return all(str(code.__module__).startswith(packages) for m in module.modules() for code in _code(m))


def _code(module: nn.Module) -> list[Any]:
    """What runs when the module is called: its class, its forward, which may be an instance's own, and its hooks."""
    forward = module.forward
    if isinstance(module, _Function) and isinstance(getattr(forward, "__self__", None), fx.GraphModule):
        return [fx.GraphModule]  # a graph has no code of anybody's
    hooks = (*module._forward_hooks.values(), *module._forward_pre_hooks.values())
    return [type(module), forward, *hooks]


def _attribute(module: nn.Module, name: str) -> Attribute:
    owner, _, leaf = name.rpartition(".")
    tensor = getattr(module.get_submodule(owner), leaf)
    return Attribute(name.removeprefix("model."), tensor)


def _export(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], strict: bool) -> Traced:
    try:
        # Passes change a graph half a dozen times, and nobody runs its code in between. Dynamo's graphs are asked for what goes with it.
        with _no_stack_traces(), _use_lazy_graph_module(not strict):
            program = torch.export.export(module, args, kwargs, strict=strict)
        mutated = functional(program.graph, claims().keys())
        if mutated is None:
            program = program.run_decompositions({})
    except Exception as error:
        name = type(module).__name__ if not isinstance(module, _Function) else getattr(module._function, "__name__", "function")
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ModelError(
            f"torch.export cannot trace {name}: {reason}; mkc needs a forward whose control flow does not depend on values"
        ) from error
    return _described(program, mutated)


@contextmanager
def _no_stack_traces() -> Iterator[None]:
    """Nobody reads where in the source each call was made, and finding out takes a seventh of a trace. Needs torch 2.13."""
    before = getattr(fx_config, "do_not_emit_stack_traces", False)
    fx_config.do_not_emit_stack_traces = True
    try:
        yield
    finally:
        fx_config.do_not_emit_stack_traces = before


def _described(program: torch.export.ExportedProgram, mutated: dict[fx.Node, fx.Node] | None) -> Traced:
    """With what is mutated as it was found, or else as the program says."""
    graph_module = program.graph_module
    by_name = {node.name: node for node in graph_module.graph.nodes}
    tensors = {**program.state_dict, **program.constants}
    sources: dict[fx.Node, UserInput | Attribute] = {}
    holders: dict[str, fx.Node] = {}
    for index, spec in enumerate(_user_order(program.graph_signature.input_specs)):
        node = by_name[spec.arg.name]
        if spec.kind is InputKind.USER_INPUT:
            sources[node] = UserInput(index)
            holders[spec.arg.name] = node
        else:
            assert spec.target is not None
            sources[node] = Attribute(spec.target, tensors[spec.target])
            holders[spec.target] = node
    told, outputs = {}, []
    results = graph_module.graph.output_node().args[0]
    for out, result in zip(program.graph_signature.output_specs, results, strict=True):
        if out.kind is OutputKind.USER_OUTPUT:
            outputs.append(result)
        elif out.kind in (OutputKind.BUFFER_MUTATION, OutputKind.USER_INPUT_MUTATION):
            assert out.target is not None
            told[holders[out.target]] = by_name[out.arg.name]
        else:
            raise ModelError(f"an output of kind {out.kind.name} cannot be compiled; run the model for inference")
    spec = program.call_spec.out_spec
    assert spec is not None
    _drop_empty_parts(graph_module.graph)
    return Traced(graph_module, sources, told if mutated is None else mutated, tuple(outputs), spec)


def _user_order(specs: Sequence[Any]) -> list[Any]:
    """User inputs first, so that their position is that of the flattened argument; constants keep their place."""
    users = [s for s in specs if s.kind is InputKind.USER_INPUT]
    others = [s for s in specs if s.kind is not InputKind.USER_INPUT]
    return users + others
