"""Program, Tasks -> bytes in memory. The oracle: numpy does one task at a time, in any order that the program allows."""

import ctypes
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from itertools import count
from random import Random

import numpy as np

from mkc.errors import PlanError
from mkc.ir.dtype import Array
from mkc.ir.graph import Kind, Node, Tensor
from mkc.ir.program import LATE, PLACE, REPORT, UNPUBLISHED, Program, Words
from mkc.ir.tasks import Tasks
from mkc.ir.tiling import TileMap
from mkc.ops import Ranges, registry
from mkc.targets.kernel import raise_reported
from mkc.targets.unpacked import unpacked

DECISION, SECTION_END = 0xFFFFFFFF, 0xFFFFFFFE  # what a worker may wait for besides a task, as in worker.cuh
POISON = 0xFF  # what uninitialised memory holds: NaN as any float, -1 as any signed integer


class Interpreter:
    """A program and the tasks of each of its sections, run without a compiler.

    It reads the words that the device reads, but takes what a task computes from its operator's `reference`. `order`
    picks who goes next among the workers that need not wait; without one, the first of them does.
    """

    def __init__(self, program: Program, sections: Sequence[Tasks], order: Random | None = None) -> None:
        self.program = program
        self.sections = tuple(sections)
        self.order = order

    def launch(self, addresses: Sequence[int], steps: Sequence[int], stream: int = 0) -> None:
        """As every kernel does it: the address of each slot, the steps of each section."""
        slots = zip(self.program.slots, addresses, strict=True)
        self.run([_memory(address, slot.nbytes) for slot, address in slots], steps)

    def trace(self, addresses: Sequence[int], steps: Sequence[int]) -> Words:
        raise PlanError("the interpreter keeps no time; trace on the CPU or a GPU")

    def run(self, memory: Sequence[Words], steps: Sequence[int]) -> None:
        """Run every section for its steps on one uint8 array for each slot. Raises MegakernelHang when nobody can go on.

        What the program makes itself is poisoned first, so that a task which runs too early cannot go unnoticed.
        """
        for slot, words in zip(self.program.slots, memory, strict=True):
            if slot.kind in (Kind.ARENA, Kind.WORDS, Kind.OUTPUT):
                words.fill(POISON)
        _Launch(self, memory, steps).finish()


@dataclass(frozen=True, slots=True)
class _Blocked:
    """A worker in front of a task: it goes on when each of these counters has reached its value."""

    needs: tuple[tuple[int, int], ...]
    task: int  # or DECISION, SECTION_END
    section: int
    step: int
    polled: tuple[Array, ...] = ()  # and the use counts of published words are those of its step


Blocking = Generator[_Blocked, None, None]
Deciding = Generator[_Blocked, None, bool]


class _Launch:
    """One launch. Workers are coroutines that follow `worker.cuh` line by line and pause wherever it may wait."""

    def __init__(self, interpreter: Interpreter, memory: Sequence[Words], steps: Sequence[int]) -> None:
        self.program = interpreter.program
        self.order = interpreter.order
        self.memory = memory
        self.steps = steps
        self.weights = self.streamed()
        self.uses = [np.zeros(len(m) * (s.kind is Kind.WORDS), np.uint32) for s, m in zip(self.program.slots, memory, strict=True)]
        self.counters = [0] * self.program.num_counters
        self.barrier = self.program.num_events + 2 * len(self.program.sections)
        self.progress = np.zeros(self.program.num_workers, PLACE)
        self.owners = [(tasks, task) for tasks in interpreter.sections for task in range(len(tasks.tasks))]

    def finish(self) -> None:
        workers = [self.worker(number) for number in range(self.program.num_workers)]
        blocked = {number: state for number, worker in enumerate(workers) if (state := next(worker, None))}
        while blocked:
            ready = [number for number, state in blocked.items() if self.is_ready(state)]
            if not ready:
                self.give_up(blocked)
            number = self.order.choice(ready) if self.order else ready[0]
            state = next(workers[number], None)
            if state is None:
                del blocked[number]
            else:
                blocked[number] = state

    def is_ready(self, state: _Blocked) -> bool:
        polled = all((uses == state.step + 1).all() for uses in state.polled)
        return polled and all(self.counters[counter] >= need for counter, need in state.needs)

    def give_up(self, blocked: dict[int, _Blocked]) -> None:
        """Report the first task in program order: whoever waits for more waits for it."""
        worker, state = min(blocked.items(), key=lambda item: item[1].task)
        late = next(((LATE, c, self.counters[c], n) for c, n in state.needs if self.counters[c] < n), None)
        reason, counter, value, need = late or (UNPUBLISHED, 0, state.step, state.step + 1)
        report = np.zeros(1, REPORT)
        report[0] = (1, reason, worker, state.section, state.step, state.task, counter, value, need, 0, 0)
        raise_reported(self.program, report, self.progress, 0)

    # ---- a worker

    def worker(self, number: int) -> Blocking:
        for section in range(len(self.program.sections)):
            yield from self.shared_queue(number, section) if self.program.is_dynamic else self.own_queue(number, section)
            self.counters[self.barrier] += 1
            yield _Blocked(((self.barrier, (section + 1) * self.program.num_workers),), SECTION_END, section, 0)

    def own_queue(self, number: int, section: int) -> Blocking:
        first = int(self.program.sections[section]["first_queue"]) + number
        queue = self.program.queue[self.program.bounds[first] : self.program.bounds[first + 1]]
        step = 0
        while (yield from self.permitted(number, section, step)):
            for task in queue:
                yield from self.run(number, int(task), section, step)
            step += 1

    def shared_queue(self, number: int, section: int) -> Blocking:
        first, count = (int(self.program.sections[section][key]) for key in ("first_queue", "num_tasks"))
        if not count:
            return
        begin, ticket = int(self.program.bounds[first]), self.program.num_events + 2 * section
        step = 0
        is_open = yield from self.permitted(number, section, step)
        while is_open:
            drawn = self.counters[ticket]
            self.counters[ticket] += 1
            while is_open and step != drawn // count:
                step += 1
                is_open = yield from self.permitted(number, section, step)
            if is_open:
                yield from self.run(number, int(self.program.queue[begin + drawn % count]), section, step)

    def permitted(self, number: int, section: int, step: int) -> Deciding:
        words = self.program.sections[section]
        if step >= self.steps[section]:
            return False
        if words["stop"] < 0:
            return True
        verdict = self.program.num_events + 2 * section + 1
        if number == 0:
            needs = self.needs(int(words["first_stop_wait"]), int(words["stop_waits"]), step)
            yield _Blocked(needs, DECISION, section, step)
            self.counters[verdict] = 2 * step + (1 if self.is_set(int(words["stop"])) else 2)
        yield _Blocked(((verdict, 2 * step + 1),), DECISION, section, step)
        return self.counters[verdict] != 2 * step + 1

    def run(self, number: int, task: int, section: int, step: int) -> Blocking:
        words = self.program.tasks[task]
        self.progress[number] = task + 1, step
        published, polled = self.published(task)
        needs = self.needs(int(words["first_wait"]), int(words["waits"]), step + 1)
        yield _Blocked(needs, task, section, step, polled)
        self.compute(task)
        for uses in published:
            uses[...] = step + 1
        if words["signal"] >= 0:
            self.counters[words["signal"]] += 1

    def needs(self, first: int, count: int, steps_done: int) -> tuple[tuple[int, int], ...]:
        waits = self.program.waits[first : first + count].tolist()
        return tuple((event, fanin * (steps_done - lag)) for event, fanin, lag in waits)

    # ---- a task

    def compute(self, task: int) -> None:
        node, ranges, outs, ins = self.operands(task)
        made = [self.box(operand, tile_map, ranges) for operand, tile_map in outs]
        raw = [self.weights[m.tensor] if operand is None else self.box(operand, m, ranges) for operand, m in ins]
        values = [tile_map.tensor.dtype.decode(bits) for (_, tile_map), bits in zip(ins, raw, strict=True)]
        op = registry()[node.op]
        results = op.reference(node, values, ranges) if op.ranged else op.reference(node, values)
        for (_, tile_map), out, value in zip(outs, made, results, strict=True):
            if value.shape != out.shape:
                raise PlanError(f"the reference of {self.program.names[task]} gives {value.shape} for a tile of {out.shape}")
            out[...] = tile_map.tensor.dtype.encode(value)

    def operands(self, task: int) -> tuple[Node, Ranges, list[tuple[int, TileMap]], list[tuple[int | None, TileMap]]]:
        """What the task is to do, and where it finds its outputs and inputs; weights that are streamed are None."""
        tasks, local = self.owners[task]
        number = tasks.node_index(local)
        node, tiling, words = tasks.graph.nodes[number], tasks.tilings[number], self.program.tasks[task]
        ranges = tuple((lo, hi) for lo, hi in words["ranges"][: len(tiling.grid)].tolist())
        streaming, numbers = registry()[node.op].streaming, count(int(words["operands"]))
        streamed = streaming.weights(node) if streaming else ()
        outs = [(next(numbers), tile_map) for tile_map in tiling.omaps]
        return node, ranges, outs, [(None if m.tensor in streamed else next(numbers), m) for m in tiling.imaps]

    def published(self, task: int) -> tuple[tuple[Array, ...], tuple[Array, ...]]:
        """The use counts of the words that a task publishes, and of those that it polls."""
        _, ranges, outs, ins = self.operands(task)

        def uses(maps: Sequence[tuple[int | None, TileMap]]) -> tuple[Array, ...]:
            words = [(o, m) for o, m in maps if o is not None and m.tensor.storage.kind is Kind.WORDS]
            return tuple(self.box(operand, tile_map, ranges, counts=True) for operand, tile_map in words)

        return uses(outs), uses(ins)

    def box(self, operand: int, tile_map: TileMap, ranges: Ranges, counts: bool = False) -> Array:
        """The box as a view of memory, or of its use counts, one a byte; numpy refuses one that leaves its slot."""
        tensor, box = tile_map.tensor, tile_map.at(ranges)
        slot, base = self.program.operands[operand].tolist()
        strides = [stride * tensor.dtype.itemsize for stride in tensor.layout.strides]
        offset = base + sum(lo * stride for (lo, _), stride in zip(box, strides, strict=True))
        extents = [hi - lo for lo, hi in box]
        if counts:
            return np.ndarray(extents, np.uint32, self.uses[slot].data, 4 * offset, [4 * stride for stride in strides])
        return np.ndarray(extents, tensor.dtype.bits, self.memory[slot].data, offset, strides)

    def streamed(self) -> dict[Tensor, Array]:
        """The weights that tasks find in their worker's stream, not among their operands."""
        slots = zip(self.program.slots, self.memory, strict=True)
        packs = [memory for slot, memory in slots if slot.kind is Kind.PACKED]
        return unpacked(self.program.streams, *packs) if self.program.streams else {}

    def is_set(self, operand: int) -> bool:
        slot, offset = self.program.operands[operand].tolist()
        return bool(self.memory[slot][offset])


def _memory(address: int, nbytes: int) -> Words:
    return np.frombuffer(memoryview((ctypes.c_uint8 * nbytes).from_address(address)), np.uint8)
