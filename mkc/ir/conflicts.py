"""Program, section, Order -> nothing, or UnsoundPlan. Tasks that could disturb each other are in order, in a step and across steps.

Parts are gone through in program order, with a ledger of who has touched which bytes. An entry leaves the ledger when
its bytes have all been overwritten: who disturbs it later also disturbs whoever overwrote it, and comes after both.
Pairs one step apart are enough: of two tasks that disturb each other one writes, and so comes after itself a step before.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mkc.errors import UnsoundPlan
from mkc.ir.graph import Kind, Tensor
from mkc.ir.order import Order, Orders
from mkc.ir.patterns import Pattern, Patterns
from mkc.ir.program import Part, Program
from mkc.ir.refusal import unsound
from mkc.ir.tiling import Range, TileMap


@dataclass(frozen=True, slots=True, eq=False)
class Touch:
    """What the tasks of a part read or write through one operand."""

    part: Part
    tensor: Tensor
    pattern: Pattern
    writes: bool
    memory: str  # all arena tensors are one memory; names are unique within a section
    base: int  # where the view begins in it
    hull: Range  # from the first byte touched to the last

    @property
    def is_words(self) -> bool:
        return self.tensor.storage.kind is Kind.WORDS


@dataclass(slots=True, eq=False)
class _Entry:
    touch: Touch
    left: list[Range]  # bytes that nobody has overwritten since, or more


def check_conflicts(program: Program, section: int, orders: Orders, patterns: Patterns) -> None:
    meaning = program.meanings[section]
    check = _Check(program, orders, patterns, meaning.tasks[0], _seen(program, section, orders.complete))
    parts = [tuple(_touches(part, patterns)) for part in meaning.parts]
    ledgers: dict[str, list[_Entry]] = defaultdict(list)
    for touches in parts:
        check.apart(touches)
        for touch in touches:
            if not touch.is_words:  # who reads words waits for them
                check.behind(ledgers[touch.memory], touch, later=False)
        _overwrite(ledgers, touches)
        for touch in touches:
            ledgers[touch.memory].append(_Entry(touch, [touch.hull]))
    if meaning.until is not None:
        check.settled(ledgers[meaning.until.storage.name], meaning.until)
    if meaning.loops:
        for touches in parts:
            for touch in touches:
                check.behind(ledgers[touch.memory], touch, later=True)
            _overwrite(ledgers, [touch for touch in touches if not touch.is_words])


def _seen(program: Program, section: int, order: Order) -> NDArray[np.int32]:
    """What tasks of a step find complete when they read: compute warps may begin before the task before them is over."""
    if program.streams is None:
        return order.now
    marked = program.queue[program.streams.early].astype(np.int64)
    computing = [part for part in program.meanings[section].parts if part.streamed and part.streamed.computes]
    mine = np.concatenate([np.arange(*part.tasks) for part in computing])
    early = marked[np.isin(marked, mine)] - program.meanings[section].tasks[0]
    seen = order.now.copy()
    seen[early, order.chain[early]] -= 2
    return seen


def _touches(part: Part, patterns: Patterns) -> Iterator[Touch]:
    """Of memory that somebody may write."""
    maps: list[tuple[TileMap, bool]] = [(m, True) for m in part.tiling.omaps] + [(m, False) for m in part.tiling.imaps]
    for tile_map, writes in maps:
        tensor, storage = tile_map.tensor, tile_map.tensor.storage
        if storage.kind.is_written:
            pattern = patterns.of(part, tile_map)
            base = storage.start + tensor.layout.offset * tensor.dtype.itemsize
            hull = (base + pattern.region.start, base + pattern.region.stop)
            yield Touch(part, tensor, pattern, writes, "" if storage.kind is Kind.ARENA else storage.name, base, hull)


def _overwrite(ledgers: dict[str, list[_Entry]], touches: Iterable[Touch]) -> None:
    for touch in touches:
        if touch.writes and touch.pattern.region.is_dense:
            entries, (lo, hi) = ledgers[touch.memory], touch.hull
            for entry in entries:
                entry.left = [part for run in entry.left for part in _less(run, lo, hi)]
            ledgers[touch.memory] = [entry for entry in entries if entry.left]


def _less(run: Range, lo: int, hi: int) -> list[Range]:
    if run[1] <= lo or hi <= run[0]:
        return [run]
    return [part for part in ((run[0], min(run[1], lo)), (max(run[0], hi), run[1])) if part[0] < part[1]]


@dataclass(frozen=True, slots=True, eq=False)
class _Check:
    program: Program
    orders: Orders
    patterns: Patterns
    first: int  # the section's first task
    seen: NDArray[np.int32]

    def behind(self, entries: list[_Entry], then: Touch, later: bool) -> None:
        """Every task of `then` comes after all in the ledger that it could disturb, or be disturbed by."""
        lo, hi = then.hull
        for entry in entries:
            touch = entry.touch
            start, stop = touch.hull
            if start < hi and lo < stop and (touch.writes or then.writes) and not _is_apart(touch, then):
                self._behind(touch, then, self._clocks(touch, then, later), later)

    def _clocks(self, touch: Touch, then: Touch, later: bool) -> NDArray[np.int32]:
        """Words tell themselves which step they are of; and whoever overwrites need only know that all have read."""
        if touch.is_words or not touch.writes:
            return self.orders.reading.ago if later else self.orders.reading.now
        if later:
            return self.orders.complete.ago
        return self.orders.complete.now if then.writes else self.seen

    def _behind(self, touch: Touch, then: Touch, clocks: NDArray[np.int32], later: bool) -> None:
        overlap = self.patterns.overlap(touch.pattern, then.pattern, then.base - touch.base)
        if overlap is None:
            return
        tasks = overlap.tasks + (touch.part.tasks[0] - self.first)
        need = np.zeros((overlap.count, clocks.shape[1]), np.int32)
        order = self.orders.complete
        np.maximum.at(need, (overlap.columns, order.chain[tasks]), order.place[tasks])
        lo, hi = then.part.tasks[0] - self.first, then.part.tasks[1] - self.first
        late = np.argwhere(clocks[lo:hi] < need[overlap.column_of])
        if len(late):
            task, chain = late[0].tolist()
            column = tasks[overlap.columns == overlap.column_of[task]]
            unordered = column[(order.chain[column] == chain) & (order.place[column] > clocks[lo + task, chain])]
            across = "the next step's " if later else ""
            raise self._race(touch, int(unordered[0]) + self.first, then, then.part.tasks[0] + task, across)

    def apart(self, touches: tuple[Touch, ...]) -> None:
        """Tasks of one part run in any order; each may overwrite only what it alone reads, and reads through the same view."""
        for number, write in enumerate(touches):
            for other in touches[number + 1 :]:
                if write.writes and write.memory == other.memory:
                    self._apart(write, other)
            if write.writes and not _is_apart(write, write):
                self._alone(write, write)

    def _apart(self, write: Touch, other: Touch) -> None:
        same = write.base == other.base and write.pattern is other.pattern and not other.writes
        if same or _is_apart(write, other):
            return
        overlap = self.patterns.overlap(write.pattern, other.pattern, other.base - write.base)
        if overlap is not None:
            column = int(overlap.columns[0])
            task = int(np.flatnonzero(overlap.column_of == column)[0])
            raise self._race(write, int(overlap.tasks[0]) + write.part.tasks[0], other, other.part.tasks[0] + task, "")

    def _alone(self, write: Touch, other: Touch) -> None:
        overlap = self.patterns.overlap(write.pattern, other.pattern, 0)
        assert overlap is not None
        partners = np.bincount(overlap.columns, minlength=overlap.count)[overlap.column_of]
        if (partners > 1).any():
            task = int(np.flatnonzero(partners > 1)[0])
            others = overlap.tasks[overlap.columns == overlap.column_of[task]]
            one = int(others[others != task][0])
            raise self._race(write, min(one, task) + write.part.tasks[0], other, max(one, task) + write.part.tasks[0], "")

    def settled(self, entries: list[_Entry], flag: Tensor) -> None:
        """The flag is read when nobody writes it any more. Nobody writes it before the decision: all tasks await that."""
        at = flag.storage.start + flag.layout.offset
        for entry in entries:
            touch = entry.touch
            if not touch.writes:
                continue
            meets = (touch.pattern.starts + touch.base <= at) & (at < touch.pattern.stops + touch.base)
            tasks = np.flatnonzero(meets[touch.pattern.box_of]) + touch.part.tasks[0]
            local = tasks - self.first
            order = self.orders.complete
            late = tasks[order.place[local] > order.decided[order.chain[local]]]
            if len(late):
                task = int(late[0])
                sentence = f"whether to run another step is read from {flag} while task {task} may yet write it"
                raise unsound(self.program, sentence, task)

    def _race(self, first: Touch, one: int, then: Touch, other: int, across: str) -> UnsoundPlan:
        """Both tasks, what they touch, and the bytes they may share."""
        (a, lo, hi), (b, start, stop) = _told(first, one), _told(then, other)
        memory = first.memory or "the arena"
        sentence = [
            f"nothing puts task {one} before {across}task {other}, and they meet in bytes {max(lo, start)} to {min(hi, stop)} of {memory}:",
            f"  {one} {self.program.names[one]} {a}",
            f"  {other} {self.program.names[other]} {b}",
        ]
        return unsound(self.program, "\n".join(sentence), one, other)


def _is_apart(one: Touch, other: Touch) -> bool:
    """What tasks of one part do not share though their boxes do; each stays in its queue from step to step."""
    return one.part is other.part and one.part.tiling.apart and not one.is_words


def _told(touch: Touch, task: int) -> tuple[str, int, int]:
    """What a task does to which box, and the bytes from the box's first to its last."""
    box = touch.pattern.box_of[task - touch.part.tasks[0]]
    intervals = ", ".join(f"{lo}:{hi}" for lo, hi in touch.pattern.boxes[box].tolist())
    lo, hi = int(touch.pattern.starts[box]) + touch.base, int(touch.pattern.stops[box]) + touch.base
    return f"{'writes' if touch.writes else 'reads'} [{intervals}] of {touch.tensor}, bytes {lo} to {hi}", lo, hi
