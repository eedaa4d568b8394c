"""Schedules -> Program. The words the device reads; each schedule becomes a section, and sections run one after another."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate

import numpy as np

from mkc.errors import PlanError
from mkc.ir.graph import Kind, Node, Tensor
from mkc.ir.program import (
    MAX_SECTIONS,
    OPERAND,
    SECTION,
    TASK,
    WAIT,
    Body,
    Meaning,
    Part,
    Program,
    Slot,
    Streamed,
    Streams,
)
from mkc.ir.tasks import ARENA, WORDS, Schedule, Task, Wait
from mkc.ir.tiling import TileMap, Tiling
from mkc.ops import registry
from mkc.passes.pack import pack
from mkc.passes.place import arena_bytes, words_bytes

PACKED = "packed"


def encode(schedules: Sequence[Schedule]) -> Program:
    if not 1 <= len(schedules) <= MAX_SECTIONS:
        raise PlanError(f"a program has 1 to {MAX_SECTIONS} sections, not {len(schedules)}")
    graphs = [s.events.tasks.graph for s in schedules]
    words = _Words(max(map(arena_bytes, graphs)), max(map(words_bytes, graphs)))
    for number, schedule in enumerate(schedules):
        words.add(schedule, number)
    streams = [s for schedule, block in zip(schedules, words.blocks, strict=True) if (s := pack(schedule, block["body"]))]
    if streams and len(schedules) > 1:
        raise PlanError("a streaming program has one section: its ring is filled for the steps to come")
    return words.program(schedules[0].target.workers, streams[0] if streams else None)


class _Words:
    """Grows section by section; indices into shared tables are absolute."""

    def __init__(self, arena: int, published: int) -> None:
        self.slots = {(ARENA, 0): Slot(ARENA, Kind.ARENA, max(arena, 1), 0)}
        if published:
            self.slots[WORDS, 0] = Slot(WORDS, Kind.WORDS, published, 0)
        self.numbers = {key: number for number, key in enumerate(self.slots)}
        self.operands: list[tuple[int, int]] = []
        self.bodies: dict[tuple[str, str], Body] = {}  # by the types of their halves
        self.numbered: dict[Body, int] = {}
        self.tasks: list[np.void] = []
        self.waits: list[tuple[int, int, int]] = []
        self.sections: list[tuple[int, int, int, int, int]] = []
        self.queues: list[tuple[int, ...]] = []
        self.names: list[str] = []
        self.paths: list[str] = []
        self.num_events = 0
        self.num_tasks = 0
        self.blocks: list[np.ndarray] = []
        self.meanings: list[Meaning] = []

    def add(self, schedule: Schedule, section: int) -> None:
        events, tasks = schedule.events, schedule.events.tasks
        block = np.zeros(len(tasks.tasks), TASK)
        known: dict[tuple[Wait, ...], int] = {}

        def first_wait(waits: tuple[Wait, ...]) -> int:
            if waits not in known:
                known[waits] = len(self.waits)
                self.waits += [(self.num_events + w.event, events.fanin[w.event], w.lag) for w in waits]
            return known[waits]

        parts: list[Part] = []
        for i, (node, tiling) in enumerate(zip(tasks.graph.nodes, tasks.tilings, strict=True)):
            mine = slice(tasks.first[i], tasks.first[i + 1])
            bodies = self._bodies(node, tiling, tasks.tasks[mine])
            numbered = (self.num_tasks + mine.start, self.num_tasks + mine.stop)
            operands = self._operands(_maps(node, tiling), section)
            part = Part(node.name, numbered, tuple(bodies), operands, tiling, _streamed(node, tiling))
            parts.append(part)
            block["body"][mine] = [self.numbered[body] for body in bodies]
            block["operands"][mine] = part.operands
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
        numbers = (self.num_tasks, self.num_tasks + len(block))
        self.meanings.append(Meaning(numbers, tuple(parts), tasks.graph.loops, until))
        self.num_tasks += len(block)
        self.num_events += len(events.fanin)

    def _bodies(self, node: Node, tiling: Tiling, tasks: Sequence[Task]) -> list[Body]:
        """The body of each task: one for all, unless what computes depends on how many tiles there are."""
        op = registry()[node.op]
        views = [m.tensor.cpp for m in _maps(node, tiling)]
        if op.streaming is None:
            return [self._body(Body(node.op, _type(op.struct, [*op.arguments(node), *views]), node.name))] * len(tasks)
        streaming = op.streaming
        header, struct = streaming.body(node) or (node.op, op.struct)
        talks = _type(struct, [*streaming.arguments(node, tiling), *views])
        body = Body(header, talks, node.name, streams=True, caches=streaming.position is not None)
        counts = [tiles for _, tiles, *_ in streaming.passages(node, tiling)]
        made = {tiles: self._body(replace(body, computes=_computes(node, tiles, talks))) for tiles in dict.fromkeys(counts)}
        return [made[tiles] for tiles in counts]

    def _body(self, body: Body) -> Body:
        """The first of both types."""
        first = self.bodies.setdefault((body.type, body.computes), body)
        self.numbered.setdefault(first, len(self.numbered))
        return first

    def _operands(self, maps: Sequence[TileMap], section: int) -> int:
        first = len(self.operands)
        for tile_map in maps:
            self._operand(tile_map.tensor, section)
        return first

    def _operand(self, tensor: Tensor, section: int) -> int:
        storage = tensor.storage
        key = (storage.kind.value, 0) if storage.kind.is_ours else (storage.name, section)
        if key not in self.slots:
            self.numbers[key] = len(self.slots)
            self.slots[key] = Slot.of(storage, section)
        self.operands.append((self.numbers[key], storage.start + tensor.layout.offset * tensor.dtype.itemsize))
        return len(self.operands) - 1

    def program(self, workers: int, streams: Streams | None) -> Program:
        packed = {(PACKED, 0): Slot(PACKED, Kind.PACKED, streams.nbytes, 0)} if streams else {}
        self.slots |= packed
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
            streams=streams,
            meanings=tuple(self.meanings),
        )


def _streamed(node: Node, tiling: Tiling) -> Streamed | None:
    op = registry()[node.op].streaming
    if op is None:
        return None
    polls = op.surely(node, tiling)
    return Streamed(
        op.computes,
        weights := op.weights(node),
        bool(weights and node["gated"]),
        tuple(op.passages(node, tiling)),
        op.input_bytes(node),
        tuple((m, tuple(tasks)) for m, tasks in polls.items() if m.tensor.storage.kind is Kind.WORDS),
        None if op.position is None else tiling.imaps[op.position],
    )


def _type(struct: str, arguments: Sequence[str]) -> str:
    return f"ops::{struct}<{', '.join(arguments)}>"


def _computes(node: Node, tiles: int, own: str) -> str:
    streaming = registry()[node.op].streaming
    return streaming.product(node, tiles) or own if streaming and streaming.computes else ""


def _maps(node: Node, tiling: Tiling) -> list[TileMap]:
    """What the body gets as operands: weights that stream are not among them."""
    streaming = registry()[node.op].streaming
    streamed = streaming.weights(node) if streaming else ()
    return [m for m in (*tiling.omaps, *tiling.imaps) if m.tensor not in streamed]
