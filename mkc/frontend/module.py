"""A compiled callable: specialised on the shapes and types it is called with, then straight to the kernel."""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import networkx as nx
import torch
from torch import nn
from torch.utils import _pytree as pytree

from mkc import config, targets
from mkc.compiler import Compilation, Lowering
from mkc.errors import InputError, ModelError, OptionError
from mkc.frontend.convert import UnsupportedNode, convert
from mkc.frontend.executable import Executable
from mkc.frontend.partition import Fallback, Segmented
from mkc.frontend.trace import trace
from mkc.inspect.dataflow import Dataflow
from mkc.inspect.taskgraph import to_networkx
from mkc.inspect.why import why
from mkc.ir.choices import Choices
from mkc.ir.program import Words
from mkc.ir.target import Target
from mkc.ir.tasks import EventGraph, Schedule, TaskGraph
from mkc.passes.schedule import POLICIES

Key = tuple[Any, ...]
MAX_SPECIALISATIONS = 16


@dataclass(frozen=True, slots=True)
class Options:
    """How to compile. `target`: "cpu", "cuda", a Target, or None for where the inputs are."""

    target: str | Target | None = None
    workers: int | None = None
    policy: str = "static"
    fallback: str = "torch"
    streams: bool = True  # weights, where the target has workers for that
    choices: Choices | None = None  # None: those that `mkc bench --tune` kept for the model on this machine, or the default

    def __post_init__(self) -> None:
        if not isinstance(self.choices, Choices | None):
            raise OptionError(f"choices={self.choices!r} must be mkc.Choices(...), or None")
        _one_of("policy", self.policy, POLICIES)
        _one_of("fallback", self.fallback, ("torch", "error"))
        if not isinstance(self.target, Target):
            _one_of("target", self.target, ("cpu", "cuda", None))
        if self.workers is not None and not 1 <= self.workers <= 1024:
            raise OptionError(f"workers={self.workers!r} must be a whole number from 1 to 1024")


def options(**given: Any) -> Options:
    """Options by name; an unknown one is refused."""
    known = Options.__dataclass_fields__
    for name in given:
        if name not in known:
            raise OptionError(f"unknown option {name!r}; there are {', '.join(known)}")
    return Options(**given)


def target_for(chosen: Options, device: torch.device) -> Target:
    """The target asked for, or that of the tensors' device. Raises InputError when it cannot run on that device."""
    wanted = chosen.target or config.target_name()
    if isinstance(wanted, Target):
        return _chosen(wanted, chosen)
    if device.type == "meta":
        raise InputError(
            "tensors on meta can only be planned with, for a Target named in full: "
            'target=mkc.targets.cuda.target(arch="sm_90a")'
        )
    if wanted is not None and wanted != device.type:
        raise InputError(f"target {wanted!r} cannot run on tensors that are on {device}; move them or drop the target")
    found = targets.at_hand(device.type, device.index, chosen.workers or config.workers())
    return _chosen(found if chosen.streams else replace(found, streams=False), chosen)


def _chosen(target: Target, options: Options) -> Target:
    """Where choices are given, no others are looked for."""
    return target if options.choices is None else replace(target, choices=options.choices, machine="")


def _one_of(name: str, value: object, allowed: Sequence[object]) -> None:
    if value not in allowed:
        raise OptionError(f"{name}={value!r} is not one of {', '.join(map(repr, allowed))}")


class Compiled:
    """A model compiled by mkc. Call it as you would call the model.

    `source`, `graph`, `tasks`, `events` and `plan` show the stages of the last specialisation, `asm` the compiler's output.
    """

    def __init__(self, model: Callable[..., Any], chosen: Options, example_inputs: tuple[Any, ...] | None = None) -> None:
        functools.update_wrapper(self, model, updated=())
        self.model = model
        self.options = chosen
        self._known: dict[Key, Executable | Segmented] = {}
        self._latest: Executable | Segmented | None = None
        self._strict = example_inputs is not None
        if example_inputs is not None:
            leaves, spec = pytree.tree_flatten((example_inputs, {}))
            self._refuse_bad_state(leaves)
            self._specialise(self._key(leaves, spec), leaves, example_inputs, {}).build()

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._executable(args, kwargs)(pytree.tree_leaves((args, kwargs)))[0]

    def trace(self, *args: Any, **kwargs: Any) -> Words:
        """One run with time stamps from inside the kernel: an array of STAMP (times in nanoseconds)."""
        executable = self._executable(args, kwargs)
        if isinstance(executable, Segmented):
            raise ModelError("a model that is cut around unsupported calls has no single timeline; see `fallbacks`")
        return executable.trace(pytree.tree_leaves((args, kwargs)))

    def _executable(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Executable | Segmented:
        leaves, spec = pytree.tree_flatten((args, kwargs))
        self._refuse_bad_state(leaves)
        key = self._key(leaves, spec)
        found = self._known.get(key)
        if found is None:
            if self._strict:
                raise InputError(self._mismatch(key))
            found = self._specialise(key, leaves, args, kwargs)
        self._latest = found
        return found

    def _refuse_bad_state(self, leaves: Sequence[Any]) -> None:
        if isinstance(self.model, nn.Module) and self.model.training:
            name = type(self.model).__name__
            raise ModelError(f"{name} is in training mode; call .eval() on it before running it through mkc")
        if torch.is_grad_enabled() and any(isinstance(x, torch.Tensor) and x.requires_grad for x in leaves):
            raise ModelError("an input requires grad and mkc computes no gradients; use torch.no_grad() or detach() it")

    def _key(self, leaves: Sequence[Any], spec: pytree.TreeSpec) -> Key:
        """Whatever the forward may have looked at: the types too, since it may ask whether it holds a Parameter."""
        seen = ((tuple(x.shape), x.dtype, x.device, type(x)) if isinstance(x, torch.Tensor) else x for x in leaves)
        return (spec, *seen)

    def _specialise(
        self, key: Key, leaves: Sequence[Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Executable | Segmented:
        if len(self._known) >= MAX_SPECIALISATIONS:
            raise InputError(
                f"the model has been called with {MAX_SPECIALISATIONS} different shapes or types, each a kernel of its own; "
                "pad the inputs to fewer shapes"
            )
        device = self._device(leaves)
        target = target_for(self.options, device)
        traced = trace(self.model, args, kwargs)
        try:
            made: Executable | Segmented = Executable([convert(traced, self._name())], target, device, self.options.policy)
        except UnsupportedNode:
            if self.options.fallback == "error":
                raise
            made = Segmented(traced, target, device, self.options.policy)
        self._known[key] = self._latest = made
        return made

    def _name(self) -> str:
        return getattr(self.model, "__name__", type(self.model).__name__)

    def _device(self, leaves: Sequence[Any]) -> torch.device:
        """The one device of inputs, parameters and buffers."""
        named = [(f"input {i}", x) for i, x in enumerate(leaves) if isinstance(x, torch.Tensor)]
        if isinstance(self.model, nn.Module):
            named += [*self.model.named_parameters(), *self.model.named_buffers()]
        if not named:
            raise InputError("a model without tensors has nothing to compile")
        first, tensor = named[0]
        for name, other in named[1:]:
            if other.device != tensor.device:
                raise InputError(f"{name} is on {other.device} but {first} is on {tensor.device}; move them to one device")
        if tensor.device.type not in ("cpu", "cuda", "meta"):
            raise InputError(f"{first} is on {tensor.device}; mkc runs on cpu and cuda")
        return tensor.device

    def _mismatch(self, key: Key) -> str:
        (expected,) = self._known
        if key[0] != expected[0]:
            return f"expected {len(expected) - 1} inputs in the structure of the examples, got {len(key) - 1}"
        pairs = enumerate(zip(expected[1:], key[1:], strict=True))
        index, (was, now) = next((i, p) for i, p in pairs if p[0] != p[1])
        return (
            f"input {index} is {_described(now)}, but the model was compiled for {_described(was)}; "
            "compile without example inputs to allow more"
        )

    # ---- looking

    @property
    def compilation(self) -> Compilation:
        """Every stage of the last specialisation. A cut model has several: see `compilations`."""
        made = self.compilations
        if len(made) != 1:
            raise ModelError(
                "call the model, or give example inputs, before looking at it" if not made else
                f"the model was cut into {len(made)} kernels; look at `compilations`"
            )  # fmt: skip
        return made[0]

    @property
    def compilations(self) -> list[Compilation]:
        """One for each kernel."""
        if self._latest is None:
            return []
        made = self._latest.executables if isinstance(self._latest, Segmented) else [self._latest]
        return [executable.compilation for executable in made]

    @property
    def fallbacks(self) -> list[Fallback]:
        """The calls that stayed in PyTorch, and why."""
        return self._latest.fallbacks if isinstance(self._latest, Segmented) else []

    @property
    def source(self) -> str:
        """One complete page of CUDA or C++ that compiles on its own."""
        return self.compilation.source.complete

    def to_networkx(self) -> nx.DiGraph:
        """The tasks and their edges, for analysis: critical paths, cuts, pictures."""
        return to_networkx(self._lowering)

    def why(self, task: int | str) -> str:
        """What a task, by number or name, waits for, and which bytes are the reason."""
        return why(self.compilation, task)

    @property
    def asm(self) -> targets.Assembly:
        """What the compiler made of the page: "cubin", "ptx" and "sass", or "library" and "assembly" on the host."""
        return targets.Assembly(self.compilation.source, self.compilation.target)

    @property
    def graph(self) -> Dataflow:
        """The operators, as they came from torch; `graph.to_networkx()` for analysis."""
        return Dataflow.of(self._lowering.graph)

    @property
    def tasks(self) -> TaskGraph:
        """The tasks, and what must come before each."""
        return self._lowering.linked

    @property
    def events(self) -> EventGraph:
        """Who signals and who waits."""
        return self._lowering.events

    @property
    def plan(self) -> Schedule:
        """Who runs what, in which order."""
        return self._lowering.schedule

    @property
    def _lowering(self) -> Lowering:
        (lowering,) = self.compilation.sections
        return lowering


def _described(leaf: Any) -> str:
    if isinstance(leaf, tuple) and len(leaf) == 4:
        shape, dtype, device, kind = leaf
        named = "" if kind is torch.Tensor else f"{kind.__name__} "
        return f"{named}{str(dtype).removeprefix('torch.')}[{', '.join(map(str, shape))}] on {device}"
    return repr(leaf)
