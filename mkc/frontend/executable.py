"""Raised graphs -> Executable. A built kernel with torch's memory bound to its slots: no copies, pointers only."""

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import torch
from torch.utils import _pytree as pytree

from mkc import config
from mkc.compiler import Compilation, compile_graphs
from mkc.errors import InputError
from mkc.forks import Lock
from mkc.frontend.convert import Raised, torch_dtype
from mkc.frontend.packing import packed
from mkc.frontend.trace import Attribute, UserInput
from mkc.inspect.stages import dump
from mkc.ir.graph import Kind, Tensor
from mkc.ir.program import Slot, Words
from mkc.ir.target import Target
from mkc.targets import build
from mkc.targets.kept import settled
from mkc.targets.kernel import Kernel

Leaves = Sequence[Any]


class Executable:
    """Graphs compiled into one kernel. Call it with the flattened arguments of each graph."""

    def __init__(self, raised: Sequence[Raised], target: Target, device: torch.device, policy: str = "static") -> None:
        self.raised = tuple(raised)
        self.device = device
        graphs = [r.graph for r in raised]
        self.compilation: Compilation = compile_graphs(graphs, settled(graphs, target, policy), policy)
        dump(self.compilation)
        self.launches = 0
        self._lock = Lock()
        self._attributes: list[torch.Tensor] = []  # live tensors of the module, by the slots below
        self._owned: list[torch.Tensor] = []  # constants and the arena, kept alive
        self._slots = self.compilation.program.slots
        fixed = [self._fixed_address(slot) for slot in self._slots]
        self._known = [at if isinstance(at, int) else 0 for at in fixed]  # addresses that never change
        live = {i: at for i, at in enumerate(fixed) if isinstance(at, torch.Tensor)}
        self._live = [*live.values()]  # whose memory may move
        given = [(i, slot) for i, slot in enumerate(self._slots) if fixed[i] is None]  # in every call anew
        self._outputs = [(i, slot) for i, slot in given if slot.kind is Kind.OUTPUT]
        self._inputs = [(i, slot, slot.section, self._leaf_of(slot)) for i, slot in given if slot.kind is not Kind.OUTPUT]
        self._moving = [*live, *(i for i, *_ in self._inputs)]  # slots of these, and of inputs
        self._distinct: tuple[int, ...] = ()  # addresses of which no two share a state

    @cached_property
    def kernel(self) -> Kernel:
        """Built when it is first needed: looking at a plan needs no kernel."""
        made = self.compilation
        return build(made.program, made.source, made.target, self.device.index)

    def build(self) -> None:
        """Build the kernel now, unless there is only a plan. Raises BuildError, TargetError."""
        if self.device.type != "meta":
            _ = self.kernel

    def __call__(self, *leaves: Leaves, steps: Sequence[int] | None = None) -> list[Any]:
        """Run every section for its steps (default: once). Returns the result of each section."""
        return self.run(Bound(self, leaves), steps)

    def run(self, bound: "Bound", steps: Sequence[int] | None = None) -> list[Any]:
        """The same with leaves that may have been bound to an earlier call: the GPU waits for less then."""
        with self._lock, torch.no_grad():
            bound.renew()
            self._launch(bound, steps)
            return bound.results()

    def trace(self, *leaves: Leaves, steps: Sequence[int] | None = None) -> Words:
        """Run once with time stamps; an array of STAMP."""
        with self._lock, torch.no_grad():
            bound = Bound(self, leaves)
            bound.renew()
            counts = steps or [1] * len(self.raised)
            self._refuse_repeats(counts)
            self._poison(bound)
            stamps = self.kernel.trace(bound.addresses, counts)
            bound.results()
            return stamps

    def _launch(self, bound: "Bound", steps: Sequence[int] | None) -> None:
        counts = steps or [1] * len(self.raised)
        self._refuse_repeats(counts)
        self._poison(bound)
        stream = torch.cuda.current_stream(self.device).cuda_stream if self.device.type == "cuda" else 0
        self.kernel.launch(bound.addresses, counts, stream)
        self.launches += 1

    def _poison(self, bound: "Bound") -> None:
        """MKC_POISON: NaN as any float, -1 as any integer, wherever this launch has to write before it may read."""
        if not config.poison():
            return
        for memory in (self._arena, *bound.outputs.values()):
            memory.fill_(0xFF)

    def _refuse_repeats(self, counts: Sequence[int]) -> None:
        for raised, count in zip(self.raised, counts, strict=True):
            if count > 1 and not raised.graph.loops:
                raise InputError(f"{raised.graph.name} was not planned to run more than one step, and {count} were asked for")

    def _leaf_of(self, slot: Slot) -> int:
        source = self.raised[slot.section].sources[slot.name]
        assert isinstance(source, UserInput)
        return source.index

    def _fixed_address(self, slot: Slot) -> int | torch.Tensor | None:
        """What never changes between calls: the arena, constants; a module's tensor, whose memory may move; or None."""
        raised = self.raised[slot.section]
        match slot.kind:
            case Kind.ARENA:
                self._arena = torch.empty(slot.nbytes, dtype=torch.uint8, device=self.device)
                return self._own(self._arena)
            case Kind.WORDS:  # of no use yet
                return self._own(torch.zeros(slot.nbytes, dtype=torch.uint8, device=self.device))
            case Kind.PACKED:
                return self._own(self._packed())
            case Kind.CONST:
                bits = raised.constants[slot.name].reshape(-1).view("uint8")
                return self._own(torch.from_numpy(bits.copy()).to(self.device))
            case _:
                source = raised.sources.get(slot.name)
                return source.tensor if isinstance(source, Attribute) else None

    def _packed(self) -> torch.Tensor:
        """The weights of streaming workers, in the order in which they are multiplied."""
        streams, (raised,) = self.compilation.program.streams, self.raised
        assert streams is not None

        def weight(tensor: Tensor) -> torch.Tensor:
            source = raised.sources[tensor.storage.name]
            assert isinstance(source, Attribute)
            layout = tensor.layout
            return source.tensor.as_strided(layout.shape, layout.strides, source.tensor.storage_offset() + layout.offset)

        return packed(streams, weight, self.device)

    def _own(self, tensor: torch.Tensor) -> int:
        self._owned.append(tensor)
        return tensor.data_ptr()


class Bound:
    """Leaves of a call or of several: their addresses, the outputs made for a call, and the inputs that had to be copied for it."""

    def __init__(self, executable: Executable, leaves: Sequence[Leaves]) -> None:
        if executable.device.type == "meta":
            raise InputError("a model on meta has no memory: it is planned, not run; load it on cpu or cuda")
        self.executable = executable
        self.leaves = leaves
        self.outputs: dict[tuple[int, str], torch.Tensor] = {}
        self.returned: list[tuple[torch.Tensor, torch.Tensor]] = []  # (caller's tensor, contiguous copy to write back)
        self.copies: list[torch.Tensor] = []
        self.addresses: tuple[int, ...] = ()
        self._inputs: list[torch.Tensor] = [leaves[section][leaf] for _, _, section, leaf in executable._inputs]
        self._tensors = [*executable._live, *self._inputs]
        self._found: list[int] | None = None  # where these lay, while all else is known

    def renew(self) -> None:
        """For the next call. Hundreds of tensors may lie elsewhere, but seldom do, and the GPU waits."""
        found = [*map(torch.Tensor.data_ptr, self._tensors)]
        loose = [number for number, tensor in enumerate(self._inputs) if not tensor.is_contiguous()]
        if found == self._found and not loose and not self.outputs and not self.copies:
            return
        self.outputs, self.returned, self.copies, self._found = {}, [], [], None
        executable = self.executable
        addresses = executable._known.copy()
        for i, at in zip(executable._moving, found, strict=True):
            addresses[i] = at
        for i, slot in executable._outputs:
            addresses[i] = self._made(slot)
        for number in loose:
            i, slot, *_ = executable._inputs[number]
            addresses[i] = self._dense(self._inputs[number], slot)
        self.addresses = tuple(addresses)
        if self.addresses != executable._distinct:
            self._refuse_shared_states()
            executable._distinct = self.addresses
        self._found = found

    def _made(self, slot: Slot) -> int:
        memory = torch.empty(slot.nbytes, dtype=torch.uint8, device=self.executable.device)
        self.outputs[slot.section, slot.name] = memory
        return memory.data_ptr()

    def _dense(self, tensor: torch.Tensor, slot: Slot) -> int:
        dense = tensor.contiguous()
        self.copies.append(dense)
        if slot.kind is Kind.STATE:
            self.returned.append((tensor, dense))
        return dense.data_ptr()

    def _refuse_shared_states(self) -> None:
        """A state that another slot also names would be ordered by nobody: the plan takes slots for distinct memory."""
        slots = self.executable._slots
        for section in range(len(self.executable.raised)):
            placed = zip(self.addresses, slots, strict=True)
            _refuse_shared([(a, s) for a, s in placed if s.section == section or s.kind is Kind.ARENA])

    def results(self) -> list[Any]:
        for tensor, dense in self.returned:
            tensor.copy_(dense)
        return [self._result(section) for section in range(len(self.executable.raised))]

    def _result(self, section: int) -> Any:
        raised = self.executable.raised[section]
        leaves = [self._leaf(section, leaf) for leaf in raised.outputs]
        return pytree.tree_unflatten(leaves, raised.out_spec)

    def _leaf(self, section: int, leaf: Any) -> Any:
        match leaf:
            case Tensor(dtype, layout, storage):
                typed = self.outputs[section, storage.name].view(torch_dtype(dtype))
                return typed.as_strided(layout.shape, layout.strides, layout.offset)
            case UserInput(index):
                return self.leaves[section][index]
            case _:
                return leaf


def _refuse_shared(placed: list[tuple[int, Slot]]) -> None:
    """In the order of addresses, against whoever reaches furthest so far: of the states, and for a state of all."""
    furthest: tuple[int, Slot | None] = (0, None)
    state = furthest
    for start, slot in sorted(placed, key=lambda one: one[0]):
        is_state = slot.kind is Kind.STATE
        end, other = furthest if is_state else state
        if other is not None and end > start:
            raise InputError(
                f"{other.name} and {slot.name} share memory and the model writes one of them; pass separate tensors"
            )
        reached = (start + slot.nbytes, slot)
        furthest = max(furthest, reached, key=lambda one: one[0])
        state = max(state, reached, key=lambda one: one[0]) if is_state else state
