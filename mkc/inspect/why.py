"""Compilation, task -> text. What a task waits for, and which bytes of whose memory are the reason."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

from mkc.compiler import Compilation, Lowering
from mkc.errors import OptionError
from mkc.inspect.taskgraph import owners
from mkc.inspect.text import count, size
from mkc.ir.span import Box, Span
from mkc.ir.tasks import Access, Tasks, Wait, access, by_node
from mkc.ir.tiling import Range, TileMap

FEW = 4  # of many alike, so many are shown
HAZARDS = {  # by whether the first writes, and the second
    (True, False): "RAW, reads what it writes",
    (False, True): "WAR, overwrites what it reads",
    (True, True): "WAW, overwrites what it writes",
}
RUNS = 1 << 16  # up to so many, an overlap is counted to the byte


def why(compilation: Compilation, task: int | str) -> str:
    """What a task awaits and why. `task` is its number in the program, or a name such as `linear_3[0:64, 0:1]`.

    A name that stands in several sections is explained for each. Raises OptionError.
    """
    return "\n\n".join(_explained(compilation, number) for number in _numbers(compilation, task))


def _numbers(compilation: Compilation, task: int | str) -> list[int]:
    names = compilation.program.names
    if isinstance(task, str) and not task.strip().isdecimal():
        return _named(names, task.strip())
    number = int(task)
    if not 0 <= number < len(names):
        raise OptionError(
            f"there is no task {number}; the program has {count(len(names), 'task')}, numbered from 0"
        )
    return [number]


def _named(names: tuple[str, ...], wanted: str) -> list[int]:
    """Tasks of that name, or the only tasks of the operator of that name."""
    plain = wanted.replace(" ", "")
    found = [i for i, name in enumerate(names) if name.replace(" ", "") == plain]
    if found:
        return found
    mine = [name for name in names if name.partition("[")[0] == wanted.partition("[")[0]]
    if not mine:
        operators = list(dict.fromkeys(name.partition("[")[0] for name in names))
        raise OptionError(f"no task is called {wanted!r}; the operators are {_listed(operators)}")
    if "[" not in wanted and len({*mine}) == 1:
        return _named(names, mine[0])
    raise OptionError(
        f"no task is called {wanted!r}; {wanted.partition('[')[0]} has {_listed(list(dict.fromkeys(mine)))}"
    )


def _listed(names: list[str], most: int = 12) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def _explained(compilation: Compilation, number: int) -> str:
    """One task, in its section."""
    local, section = number, 0
    while local >= len(compilation.sections[section].tasks.tasks):
        local -= len(compilation.sections[section].tasks.tasks)
        section += 1
    return "\n".join(
        _lines(compilation.sections[section], local, number - local, len(compilation.sections) > 1)
    )


def _lines(lowering: Lowering, task: int, shift: int, several: bool) -> Iterator[str]:
    tasks, linked = lowering.tasks, lowering.linked
    node = tasks.node_of(task)
    where = f", at {node.path}" if node.path else ""
    section = f", in section {lowering.graph.name}" if several else ""
    yield f"task {task + shift}, {tasks.name(task)}{where}{section}{_place(lowering, task)}"
    for use in _uses(tasks, task):
        yield f"  {use}"
    if not linked.before[task] and not linked.carried[task]:
        yield "  waits for nothing"
    if linked.before[task]:
        yield f"  waits for {count(_number(linked.before[task]), 'task')}{_events(lowering, task, 0)}:"
        yield from _conflicts(lowering, task, linked.before[task], shift)
    if linked.carried[task]:
        yield f"  waits for {count(_number(linked.carried[task]), 'task')} of the step before{_events(lowering, task, 1)}:"
        yield from _conflicts(lowering, task, linked.carried[task], shift)
    yield _signal(lowering, task)


def _place(lowering: Lowering, task: int) -> str:
    worker = owners(lowering.schedule)[task]
    if worker is None:
        return ""
    queue = lowering.schedule.queues[worker]
    return f", {queue.index(task) + 1} of {len(queue)} in the queue of worker {worker}"


def _events(lowering: Lowering, task: int, lag: int) -> str:
    """The events of a wait, and which of them the queue's order keeps without looking."""

    def text(wait: Wait) -> str:
        kept = "" if wait in lowering.schedule.waits[task] else ", kept by the queue's order"
        return f"event {wait.event} ({count(lowering.events.fanin[wait.event], 'signal')}{kept})"

    waits = [wait for wait in lowering.events.waits[task] if wait.lag == lag]
    if len(waits) > FEW:
        return f" through {len(waits)} events, {waits[0].event} to {waits[-1].event}"
    return f" through {', '.join(map(text, waits))}" if waits else ""


def _signal(lowering: Lowering, task: int) -> str:
    """Whom the task lets go on."""
    events, event = lowering.events, lowering.events.signals[task]
    if event < 0:
        return "  signals nothing: no task waits for it"
    waiting = [t for t, waits in enumerate(events.waits) if event in [wait.event for wait in waits]]
    names = [lowering.tasks.name(t) for t in waiting]
    if event in [wait.event for wait in events.stop]:
        names.append("the decision whether to go on")
    return f"  signals event {event}, for {_listed(names, FEW)}"


def _conflicts(lowering: Lowering, task: int, ranges: tuple[Range, ...], shift: int) -> Iterator[str]:
    """Producers by operator, with the bytes that they and the task must not touch in another order."""
    tasks = lowering.tasks
    for _, (lo, hi) in (part for r in ranges for part in by_node(tasks.first, r)):
        if hi - lo == 1:
            yield f"    {lo + shift} {tasks.name(lo)}"
        else:
            yield f"    {lo + shift} to {hi - 1 + shift}, {hi - lo} tasks of {tasks.node_of(lo).name}"
        reasons = list(
            dict.fromkeys(r for producer in range(lo, hi) for r in _reasons(tasks, producer, task))
        )
        yield from (f"      {reason}" for reason in reasons[:FEW])
        if len(reasons) > FEW:
            yield f"      and {len(reasons) - FEW} more like these"


@dataclass(frozen=True, slots=True)
class _Use:
    """A box of a tensor that a task reads or writes."""

    tile_map: TileMap
    box: Box
    access: Access
    writes: bool

    def __str__(self) -> str:
        tensor = self.tile_map.tensor
        box = ", ".join(f"{lo}:{hi}" for lo, hi in self.box)
        return f"{'writes' if self.writes else 'reads'} [{box}] of {tensor}, {self.access}"


def _uses(tasks: Tasks, task: int) -> list[_Use]:
    """Of memory that some task writes: nothing else makes anyone wait."""
    tiling, ranges = tasks.tilings[tasks.tasks[task].node], tasks.tasks[task].ranges
    maps = [*((m, False) for m in tiling.imaps), *((m, True) for m in tiling.omaps)]
    return [
        _Use(m, box, access(m.tensor, box), writes)
        for m, writes in maps
        for box in (m.at(ranges),)
        if m.tensor.storage.kind.is_written
    ]


def _reasons(tasks: Tasks, producer: int, task: int) -> Iterator[str]:
    """Why one comes before the other: every pair of uses of which one writes what the other touches."""
    for first, then in product(_uses(tasks, producer), _uses(tasks, task)):
        if (first.writes or then.writes) and first.access.conflicts(then.access):
            hazard = HAZARDS[first.writes, then.writes]
            mine, theirs = then.tile_map.tensor.storage.name, first.tile_map.tensor.storage.name
            place = f"{mine} takes over memory of {theirs}" if mine != theirs else mine
            yield f"{hazard}: {place}, {_shared(first, then)}"


def _shared(first: _Use, then: _Use) -> str:
    """How many bytes two accesses share, and where in their memory the shared ones lie."""
    a, b = first.access.span, then.access.span
    lo, hi = max(a.start, b.start), min(a.stop, b.stop)
    nbytes = _overlap(a, b)
    return f"{'some bytes' if nbytes is None else size(nbytes)} of {first.access.memory}[{lo}:{hi}]"


def _overlap(a: Span, b: Span) -> int | None:
    """The bytes that both spans hold, or None where counting them would take long."""
    if _count(a) + _count(b) > RUNS:
        return None
    total, left, right = 0, _runs(a), _runs(b)
    i = j = 0
    while i < len(left) and j < len(right):
        total += max(0, min(left[i][1], right[j][1]) - max(left[i][0], right[j][0]))
        i, j = (i + 1, j) if left[i][1] <= right[j][1] else (i, j + 1)
    return total


def _count(span: Span) -> int:
    total = 1
    for _, repeats in span.levels:
        total *= repeats
    return total


def _runs(span: Span) -> list[Range]:
    """Every run of bytes, in order."""
    starts = [span.start]
    for stride, repeats in span.levels:
        starts = [at + stride * i for at in starts for i in range(repeats)]
    return sorted((at, at + span.run) for at in starts)


def _number(ranges: tuple[Range, ...]) -> int:
    return sum(hi - lo for lo, hi in ranges)
