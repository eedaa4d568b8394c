"""Level 5. The words the device reads: tasks, waits, queues and operands, laid out as in `templates/mkc/abi.cuh`."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mkc.ir.graph import Kind, Storage, Tensor
from mkc.ir.tiling import Range, Tiling

MAX_AXES = 6
MAX_SECTIONS = 4
EVENT_STRIDE = 16  # uint32 words from one counter to the next

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
REPORT = np.dtype([(f, "<u4") for f in "failed worker section step task event have need".split()])
STAMP = np.dtype([("worker", "<u4"), ("task", "<u4"), ("taken", "<u8"), ("ready", "<u8"), ("done", "<u8")])
LAUNCH = np.dtype(
    [
        *((name, "<u8") for name in "tasks waits operands sections bounds queue counters progress report stamps".split()),
        ("deadline_ns", "<u8"),
        ("num_workers", "<u4"),
        ("num_sections", "<u4"),
        ("num_events", "<u4"),
        ("steps", "<u4", (MAX_SECTIONS,)),
        ("padding", "<u4"),
    ]
)
Words = NDArray[Any]


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
    """A specialised operator: the header it stands in, its C++ type, and the node it was first needed for."""

    header: str
    type: str
    example: str


@dataclass(frozen=True, slots=True)
class Part:
    """A node in words: its tasks, the body and the first operand that they share, and which boxes each is to touch."""

    name: str
    tasks: Range
    body: Body
    operands: int
    tiling: Tiling


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
