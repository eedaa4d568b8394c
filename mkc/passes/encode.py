"""Schedules -> Program. The words the device reads; each schedule becomes a section, and sections run one after another."""

from collections.abc import Sequence
from itertools import accumulate

import numpy as np

from mkc.errors import PlanError
from mkc.ir.graph import Kind, Node, Tensor
from mkc.ir.program import MAX_SECTIONS, OPERAND, SECTION, TASK, WAIT, Body, Program, Slot
from mkc.ir.tasks import ARENA, Schedule, Wait
from mkc.ir.tiling import Tiling
from mkc.ops import registry
from mkc.passes.place import arena_bytes


def encode(schedules: Sequence[Schedule]) -> Program:
    if not 1 <= len(schedules) <= MAX_SECTIONS:
        raise PlanError(f"a program has 1 to {MAX_SECTIONS} sections, not {len(schedules)}")
    words = _Words(max(arena_bytes(s.events.tasks.graph) for s in schedules))
    for number, schedule in enumerate(schedules):
        words.add(schedule, number)
    return words.program(schedules[0].target.workers)


class _Words:
    """Grows section by section; indices into shared tables are absolute."""

    def __init__(self, arena: int) -> None:
        self.slots = {(ARENA, 0): Slot(ARENA, Kind.ARENA, max(arena, 1), 0)}
        self.numbers = {(ARENA, 0): 0}
        self.operands: list[tuple[int, int]] = []
        self.bodies: dict[str, Body] = {}
        self.tasks: list[np.void] = []
        self.waits: list[tuple[int, int, int]] = []
        self.sections: list[tuple[int, int, int, int, int]] = []
        self.queues: list[tuple[int, ...]] = []
        self.names: list[str] = []
        self.paths: list[str] = []
        self.num_events = 0
        self.num_tasks = 0
        self.blocks: list[np.ndarray] = []

    def add(self, schedule: Schedule, section: int) -> None:
        events, tasks = schedule.events, schedule.events.tasks
        block = np.zeros(len(tasks.tasks), TASK)
        known: dict[tuple[Wait, ...], int] = {}

        def first_wait(waits: tuple[Wait, ...]) -> int:
            if waits not in known:
                known[waits] = len(self.waits)
                self.waits += [(self.num_events + w.event, events.fanin[w.event], w.lag) for w in waits]
            return known[waits]

        for i, (node, tiling) in enumerate(zip(tasks.graph.nodes, tasks.tilings, strict=True)):
            mine = slice(tasks.first[i], tasks.first[i + 1])
            block["body"][mine] = self._body(node, tiling)
            block["operands"][mine] = self._operands(tiling, section)
            self.names += [tasks.name(t) for t in range(mine.start, mine.stop)]
            self.paths += [node.path] * (mine.stop - mine.start)
        for t, task in enumerate(tasks.tasks):
            waits = schedule.waits[t]
            block["first_wait"][t], block["waits"][t] = first_wait(waits), len(waits)
            block["ranges"][t, : len(task.ranges)] = task.ranges
        signals = np.asarray(events.signals, np.int32)
        block["signal"] = np.where(signals >= 0, signals + self.num_events, -1)
        until = tasks.graph.until
        self.sections.append(
            (
                len(self.queues),
                len(tasks.tasks) if schedule.policy == "dynamic" else 0,
                first_wait(events.stop),
                len(events.stop),
                -1 if until is None else self._operand(until, section),
            )
        )
        queues = schedule.queues if len(block) else ((),) * schedule.target.workers  # nothing to draw from either
        self.queues += [tuple(self.num_tasks + t for t in queue) for queue in queues]
        self.blocks.append(block)
        self.num_tasks += len(block)
        self.num_events += len(events.fanin)

    def _body(self, node: Node, tiling: Tiling) -> int:
        op = registry()[node.op]
        views = [_view(m.tensor) for m in (*tiling.omaps, *tiling.imaps)]
        name = f"ops::{op.struct}<{', '.join([*op.arguments(node), *views])}>"
        self.bodies.setdefault(name, Body(op.name, name, node.name))
        return list(self.bodies).index(name)

    def _operands(self, tiling: Tiling, section: int) -> int:
        first = len(self.operands)
        for tile_map in (*tiling.omaps, *tiling.imaps):
            self._operand(tile_map.tensor, section)
        return first

    def _operand(self, tensor: Tensor, section: int) -> int:
        storage = tensor.storage
        key = (ARENA, 0) if storage.kind is Kind.ARENA else (storage.name, section)
        if key not in self.slots:
            self.numbers[key] = len(self.slots)
            self.slots[key] = Slot.of(storage, section)
        self.operands.append((self.numbers[key], storage.start + tensor.layout.offset * tensor.dtype.itemsize))
        return len(self.operands) - 1

    def program(self, workers: int) -> Program:
        return Program(
            tasks=np.concatenate(self.blocks),
            waits=np.array(self.waits, WAIT),
            sections=np.array(self.sections, SECTION),
            bounds=np.array([0, *accumulate(map(len, self.queues))], np.uint32),
            queue=np.array([t for queue in self.queues for t in queue], np.uint32),
            operands=np.array(self.operands, OPERAND),
            slots=tuple(self.slots.values()),
            bodies=tuple(self.bodies.values()),
            names=tuple(self.names),
            paths=tuple(self.paths),
            num_events=self.num_events,
            num_workers=workers,
        )


def _view(tensor: Tensor) -> str:
    """The tensor's C++ type. Its offset is in the operand's address, so layers share bodies."""
    extents = ", ".join(map(str, tensor.shape))
    steps = ", ".join(map(str, tensor.layout.strides))
    return f"View<{tensor.dtype.cpp}, Shape<{extents}>, Stride<{steps}>>"
