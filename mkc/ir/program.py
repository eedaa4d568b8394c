"""Level 5. The words the device reads: tasks, waits, queues and operands, laid out as in `templates/mkc/abi.cuh`."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mkc.ir.graph import Kind, Storage, Tensor
from mkc.ir.tiling import Range, TileMap, Tiling

MAX_AXES = 6
MAX_SECTIONS = 4
MAX_OPERANDS = 16  # of a task of a streaming program
EVENT_STRIDE = 16  # uint32 words from one counter to the next
SLOT_BYTES = 16384  # of a streaming worker's ring, as in block.cuh
SLOT_FRAGMENTS = 4  # of each compute warp

TASK = np.dtype(
    [
        ("body", "<u2"),
        ("waits", "<u2"),
        ("first_wait", "<u4"),
        ("signal", "<i4"),
        ("operands", "<u4"),
        ("ranges", "<i4", (MAX_AXES, 2)),
    ]
)
WAIT = np.dtype([("event", "<u4"), ("fanin", "<u4"), ("lag", "<u4")])
SECTION = np.dtype(
    [
        ("first_queue", "<u4"),
        ("num_tasks", "<u4"),
        ("first_stop_wait", "<u4"),
        ("stop_waits", "<u4"),
        ("stop", "<i4"),
    ]
)
OPERAND = np.dtype([("slot", "<u4"), ("offset", "<u8")])
ENTRY = np.dtype(
    [
        ("task", TASK),
        ("operands", "<u8", (MAX_OPERANDS,)),
        *((name, "<u4") for name in "hops early index padding".split()),
    ]
)
STREAM = np.dtype([*((name, "<u4") for name in "first fragments place".split()), ("body", "<u2"), ("early", "u1"), ("awaits", "u1")])
LATE, OUTSIDE, UNPUBLISHED, MISFIT = range(4)  # reasons of a report
REPORT = np.dtype(
    [
        *((name, "<u4") for name in "failed reason worker section step task event have need extent".split()),
        ("index", "<i8"),
    ]
)
PLACE = np.dtype([("task", "<u4"), ("step", "<u4")])  # the last task taken up, plus one; its step
STAMP = np.dtype([("worker", "<u4"), ("task", "<u4"), ("taken", "<u8"), ("ready", "<u8"), ("done", "<u8")])
LAUNCH = np.dtype(
    [
        *((name, "<u8") for name in "tasks waits operands sections bounds queue counters progress report stamps".split()),
        ("deadline_ns", "<u8"),
        *((name, "<u8") for name in "entries streams stream_bounds packed uses".split()),
        ("num_workers", "<u4"),
        ("num_sections", "<u4"),
        ("num_events", "<u4"),
        ("steps", "<u4", (MAX_SECTIONS,)),
        *((name, "<u4") for name in "window pace delay seed padding".split()),
    ]
)
FIXED_BYTES = 64 + 16 * 16 + 8 * (ENTRY.itemsize + 16) + 2 * (ENTRY.itemsize + 104) + 6144  # of shared memory, as in block.cuh
Words = NDArray[Any]
Tiles = tuple[int, int, int, int, int, int]  # of a task: the first, how many; fragments, chunk, group and abreast of a pack


@dataclass(frozen=True, slots=True)
class Slot:
    """Memory that the host supplies at launch. The arena is one slot, whatever is placed in it."""

    name: str
    kind: Kind
    nbytes: int
    section: int  # whose graph names it

    @staticmethod
    def of(storage: Storage, section: int) -> "Slot":
        return Slot(storage.name, storage.kind, storage.nbytes, section)

    def __str__(self) -> str:
        return f"{self.kind.value} {self.name} ({self.nbytes} bytes)"


@dataclass(frozen=True, slots=True)
class Body:
    """A specialised operator: the header it stands in, its C++ type, and the node it was first needed for.

    For streaming workers the type is that of the half for warps that talk, and `computes` that of the other, if there is one. Bodies
    that differ in one half share the other.
    """

    header: str
    type: str
    example: str
    streams: bool = False  # knows the streaming worker
    computes: str = ""  # a type, perhaps the same
    caches: bool = False  # and one for loaders, who bring rows of a cache


@dataclass(frozen=True, slots=True)
class Pack:
    """How the weights of one node lie in packed memory: cut into tiles of 8 rows, and the tiles shared out.

    `fragments` is the depth of a tile for each compute warp, in units of 8 rows by 32; `gated` alternates 4 rows of the
    first weight with 4 of the second. Each share is (first tile, tiles, offset in bytes). Tiles follow each other whole,
    or, where `chunk` is less than `fragments`, in groups of `group` tiles, whose depth comes chunk by chunk, of all of them.
    `abreast` tiles pass side by side, so that each compute warp has a share of one of them; a share's last may be fewer.
    """

    weights: tuple[Tensor, ...]  # [N, K] each
    gated: bool
    fragments: int
    shares: tuple[tuple[int, int, int], ...]
    chunk: int
    group: int
    abreast: int


def passing(count: int, fragments: int, abreast: int) -> int:
    """Of each compute warp, the fragments of so many tiles."""
    return -(-count // abreast) * fragments


def slots(fragments: int) -> int:
    """That so many fragments of each compute warp take."""
    return -(-fragments // SLOT_FRAGMENTS)


def in_order(count: int, pack: Pack) -> list[int]:
    """The fragments of so many tiles, numbered tile after tile, in the order in which they are multiplied; among them those of
    tiles that are not there, where fewer are left than pass side by side."""
    if pack.chunk == pack.fragments:
        return [
            tile * pack.fragments + fragment
            for first in range(0, count, pack.abreast)
            for fragment in range(pack.fragments)
            for tile in range(first, first + pack.abreast)
        ]
    return [
        tile * pack.fragments + fragment
        for first in range(0, count, pack.group)
        for chunk in range(0, pack.fragments, pack.chunk)
        for tile in range(first, min(first + pack.group, count))
        for fragment in range(chunk, chunk + pack.chunk)
    ]


@dataclass(frozen=True, slots=True, eq=False)
class Streams:
    """What makes a program one for streaming workers: what each worker's loaders bring, in the order of its queue."""

    records: Words  # STREAM
    bounds: Words  # uint32, where each worker's records begin and end
    hops: Words  # uint32, for each place in a queue: exchanges from the worker's last sums to the task's input, or none
    early: Words  # bool, likewise: compute warps may begin before the input has come
    packs: tuple[Pack, ...]
    nbytes: int  # of packed memory
    ring_slots: int
    input_bytes: int  # of shared memory that bodies ask for beside the ring
    shared_bytes: int  # of shared memory in all
    resident_from: int = 0  # fragments from which on a share is a long one,
    resident_slots: int = 0  # and how many slots of each stay in the last cache from step to step
    paced: bool = True  # loaders keep to a window and a pace; where there are none, a slot is filled as soon as it is read


@dataclass(frozen=True, slots=True)
class Streamed:
    """What the tasks of a part ask of streaming workers.

    `polls` are the words that tasks wait for whatever the data are, each with the tasks that do, counted from the
    part's first. Other published inputs may be left alone in a step in which they are not needed.
    """

    computes: bool  # has a part for compute warps, and so a record
    weights: tuple[Tensor, ...]  # that come through the ring, not as operands
    gated: bool
    passages: tuple[Tiles, ...]  # of each task
    input_bytes: int  # of shared memory
    polls: tuple[tuple[TileMap, tuple[int, ...]], ...]
    position: TileMap | None = None  # how many rows of a cache come through the ring


@dataclass(frozen=True, slots=True)
class Part:
    """A node in words: its tasks, each one's body, the first operand that they share, and which boxes each is to touch."""

    name: str
    tasks: Range
    bodies: tuple[Body, ...]
    operands: int
    tiling: Tiling
    streamed: Streamed | None = None

    @property
    def maps(self) -> tuple[TileMap, ...]:
        """What its bodies get as operands."""
        weights = self.streamed.weights if self.streamed else ()
        return tuple(m for m in (*self.tiling.omaps, *self.tiling.imaps) if m.tensor not in weights)


@dataclass(frozen=True, slots=True)
class Meaning:
    """What a section's words stand for. No device reads it: the checker holds the words against it."""

    tasks: Range
    parts: tuple[Part, ...]  # in program order
    loops: bool
    until: Tensor | None


@dataclass(frozen=True, slots=True, eq=False)
class Program:
    """Everything a kernel needs but the page and the memory."""

    tasks: Words  # TASK
    waits: Words  # WAIT
    sections: Words  # SECTION
    bounds: Words  # uint32, where each queue begins and ends in `queue`
    queue: Words  # uint32, task numbers
    operands: Words  # OPERAND
    slots: tuple[Slot, ...]
    bodies: tuple[Body, ...]
    names: tuple[str, ...]  # per task, for people
    paths: tuple[str, ...]  # per task: where its operator stood in the model
    num_events: int
    num_workers: int
    meanings: tuple[Meaning, ...]  # per section
    streams: Streams | None = None

    @property
    def num_counters(self) -> int:
        """Events, a ticket and a verdict for each section, the barrier, the count of those leaving, the abort flag."""
        return self.num_events + 2 * len(self.sections) + 3

    @property
    def is_dynamic(self) -> bool:
        """Whether workers draw tickets, rather than have queues of their own."""
        return bool(self.sections["num_tasks"].any())

    def producers(self, event: int) -> tuple[int, ...]:
        """The tasks that signal an event."""
        return tuple(int(t) for t in np.flatnonzero(self.tasks["signal"] == event))

    def __str__(self) -> str:
        lines = [f"{len(self.tasks)} tasks, {self.num_events} events, {self.num_workers} workers"]
        lines += [f"slot {i}: {slot}" for i, slot in enumerate(self.slots)]
        lines += [f"body {i}: {body.type}" for i, body in enumerate(self.bodies)]
        lines += [self.line(i) for i in range(len(self.tasks))]
        return "\n".join(lines)

    def line(self, index: int) -> str:
        """A task's words, for people."""
        task = self.tasks[index]
        first, count = int(task["first_wait"]), int(task["waits"])
        waits = " ".join(f"e{w['event']}>={w['fanin']}{chr(39) * int(w['lag'])}" for w in self.waits[first : first + count])
        return f"{index}: {self.names[index]} body {task['body']} waits [{waits}] signals {task['signal']}"
