"""Program, Target -> nothing, or UnsoundPlan. The words taken one by one: every number points where it may, and means its part."""

from itertools import pairwise

import numpy as np

from mkc.errors import UnsoundPlan
from mkc.ir.graph import Kind, Storage, Tensor
from mkc.ir.program import MAX_AXES, MAX_SECTIONS, Meaning, Part, Program, Words
from mkc.ir.refusal import unsound
from mkc.ir.target import Target
from mkc.ir.tasks import ARENA, WORDS
from mkc.ir.tiling import Axis, Split


def check_words(program: Program, target: Target) -> None:
    _fits(program, target)
    _slots_are_distinct(program)
    for section, meaning in enumerate(program.meanings):
        _queues(program, section)
        _stop_flag(program, section)
        _parts_follow_each_other(meaning)
        for part in meaning.parts:
            _task_words(program, part)
            _operands(program, part, section)
            _views(program, part)
    _ranges(program)
    _events(program)


# ---- the machine, the memory


def _fits(program: Program, target: Target) -> None:
    """A body's registers and scratch memory are known to its compiler alone, which refuses what does not fit."""
    if not 1 <= program.num_workers <= target.workers:
        raise UnsoundPlan(f"a plan for {program.num_workers} workers, and {target} has room for {target.workers} at once")
    count = len(program.sections)
    if not 1 <= count <= MAX_SECTIONS or count != len(program.meanings):
        raise UnsoundPlan(f"{count} sections, and {len(program.meanings)} that say what they mean")
    if sum(hi - lo for lo, hi in (m.tasks for m in program.meanings)) != len(program.tasks):
        raise UnsoundPlan(f"{len(program.tasks)} tasks, which are not those of the sections")


def _slots_are_distinct(program: Program) -> None:
    """The executable gives every slot memory of its own; so a storage must not have two."""
    owners = [(s.name, -1 if s.kind.is_ours else s.section) for s in program.slots]
    alone = [s.kind for s in program.slots if s.kind.is_ours or s.kind is Kind.PACKED]
    if len(set(owners)) != len(owners) or len(set(alone)) != len(alone):
        raise UnsoundPlan("two slots are the same memory: " + ", ".join(map(str, program.slots)))


# ---- queues


def _queues(program: Program, section: int) -> None:
    """Every task of the section stands in one queue, once."""
    words, (first, end) = program.sections[section], program.meanings[section].tasks
    tickets, queue = int(words["num_tasks"]), int(words["first_queue"])
    if tickets != (end - first if program.is_dynamic else 0):
        raise UnsoundPlan(f"section {section} has {end - first} tasks and {tickets} tickets for them")
    stop = queue + (1 if tickets else program.num_workers)
    bounds = program.bounds[queue : stop + 1].astype(np.int64)
    if len(bounds) != stop + 1 - queue or (np.diff(bounds) < 0).any() or bounds[-1] > len(program.queue):
        raise UnsoundPlan(f"section {section} has queues {queue} to {stop - 1}, bounded by {bounds.tolist()}")
    if tickets and bounds[1] - bounds[0] != tickets:
        raise UnsoundPlan(f"section {section} gives {tickets} tickets for a queue of {bounds[1] - bounds[0]}")
    queued = np.sort(program.queue[bounds[0] : bounds[-1]])
    if not np.array_equal(queued, np.arange(first, end)):
        _refuse_queue(program, queued, first, end)


def _refuse_queue(program: Program, queued: Words, first: int, end: int) -> None:
    counts = np.bincount(queued.astype(np.int64), minlength=end)
    wanted = np.zeros_like(counts)
    wanted[first:end] = 1
    task = int(np.flatnonzero(counts != wanted)[0])
    if task >= len(program.tasks):
        raise UnsoundPlan(f"a queue holds task {task}, and there are {len(program.tasks)}")
    sentence = f"task {task} stands {counts[task]} times in the queues of tasks {first} to {end}, not {wanted[task]}"
    raise unsound(program, sentence, task)


# ---- events and waits


def _events(program: Program) -> None:
    """Every event belongs to one section, and who waits for it waits for all of its signals, of this step or the last."""
    signals = program.tasks["signal"].astype(np.int64)
    producers = np.bincount(signals[signals >= 0], minlength=program.num_events)
    owner = np.full(program.num_events, -1)
    for section, meaning in enumerate(program.meanings):
        mine = signals[slice(*meaning.tasks)]
        mine = mine[mine >= 0]
        if (owner[mine] >= 0).any():
            raise unsound(program, f"section {section} signals an event of another section", meaning.tasks[0])
        owner[mine] = section
        for task, first, count in _waiters(program, section):
            waits = program.waits[first : first + count]
            if len(waits) != count:
                raise _refused(program, f"waits {first} to {first + count} are beyond the table", task)
            for event, fanin, lag in waits.tolist():
                if not (event < program.num_events and owner[event] == section and lag <= 1 and fanin == producers[event]):
                    raise _refused(program, _about(program, event, fanin, lag, producers, section), task)


def _waiters(program: Program, section: int) -> list[tuple[int | None, int, int]]:
    """(the first task that has them, first wait, how many) for all different waits of a section; None waits for the flag."""
    lo, hi = program.meanings[section].tasks
    tasks = program.tasks[lo:hi]
    pairs = np.stack([tasks["first_wait"], tasks["waits"]], axis=1).astype(np.int64)
    found, at = np.unique(pairs, axis=0, return_index=True)
    mine = [(lo + int(t), first, count) for (first, count), t in zip(found.tolist(), at, strict=True) if count]
    stop = program.sections[section]
    return [*mine, (None, int(stop["first_stop_wait"]), int(stop["stop_waits"]))]


def _about(program: Program, event: int, fanin: int, lag: int, producers: Words, section: int) -> str:
    if event >= program.num_events:
        return f"waits for event {event}, and there are {program.num_events}"
    if lag > 1:
        return f"waits for event {event} of {lag} steps before; counters keep one step apart"
    if fanin != producers[event]:
        return f"waits for {fanin} signals of event {event}, which gets {producers[event]} in a step"
    return f"waits for event {event}, which nobody in section {section} signals"


def _refused(program: Program, sentence: str, task: int | None) -> UnsoundPlan:
    who = "the decision about another step" if task is None else f"task {task}"
    return unsound(program, f"{who} {sentence}", *([] if task is None else [task]))


# ---- what a part's tasks must say


def _parts_follow_each_other(meaning: Meaning) -> None:
    ends = [meaning.tasks[0], *(part.tasks[1] for part in meaning.parts)]
    starts = [*(part.tasks[0] for part in meaning.parts), meaning.tasks[1]]
    if starts != ends:
        raise UnsoundPlan(f"the tasks {meaning.tasks} of a section are not those of its parts in turn")


def _task_words(program: Program, part: Part) -> None:
    """Its tasks run the body that was made for it, on its operands, and signal an event that there is."""
    tasks = program.tasks[slice(*part.tasks)]
    bodies = [program.bodies[body] if body < len(program.bodies) else None for body in tasks["body"].tolist()]
    wrong = np.array([body != own for body, own in zip(bodies, part.bodies, strict=True)], np.bool_)
    wrong |= tasks["operands"] != part.operands
    wrong |= (tasks["signal"] < -1) | (tasks["signal"] >= program.num_events)
    if wrong.any():
        task = part.tasks[0] + int(np.flatnonzero(wrong)[0])
        body = [i for i, body in enumerate(program.bodies) if body == part.bodies[task - part.tasks[0]]]
        has = f"body {body}, operands from {part.operands}, an event below {program.num_events}"
        raise unsound(program, f"task {task} is one of {part.name}, which has {has}", task)


def _operands(program: Program, part: Part, section: int) -> None:
    for number, tile_map in enumerate(part.maps, part.operands):
        _operand(program, number, tile_map.tensor, section, f"operand {number} of {part.name}")
    for tile_map in part.tiling.omaps:
        if not tile_map.tensor.storage.kind.is_written:
            raise unsound(program, f"{part.name} writes {tile_map.tensor}, which is only read", part.tasks[0])


def _operand(program: Program, number: int, tensor: Tensor, section: int, what: str) -> None:
    """The words point to the tensor, and all of it lies in its storage, which lies in its slot."""
    if not 0 <= number < len(program.operands) or program.operands["slot"][number] >= len(program.slots):
        raise UnsoundPlan(f"{what} points to no slot")
    index, offset = program.operands[number].tolist()
    slot, storage = program.slots[index], tensor.storage
    begin, end = _reach(tensor)
    if not _is_slot_of(program, index, storage, section) or offset != storage.start + begin:
        raise UnsoundPlan(f"{what} is at byte {offset} of slot {index}, {slot}; {tensor} is at {storage.start + begin} of its own")
    if begin < 0 or end > storage.nbytes or storage.start < 0 or storage.start + taken_bytes(tensor) > slot.nbytes:
        raise UnsoundPlan(f"{what} is {tensor}, bytes {storage.start + begin} to {storage.start + end} of slot {index}, {slot}")


def _is_slot_of(program: Program, index: int, storage: Storage, section: int) -> bool:
    slot = program.slots[index]
    if storage.kind.is_ours:
        return slot.kind is storage.kind and slot.name == (ARENA if storage.kind is Kind.ARENA else WORDS)
    own = (slot.name, slot.kind, slot.nbytes, slot.section) == (storage.name, storage.kind, storage.nbytes, section)
    return own and storage.start == 0


def taken_bytes(tensor: Tensor) -> int:
    """What the tensor's storage takes up: beside a published float stands its use count."""
    wide = tensor.storage.kind is Kind.WORDS and tensor.dtype.itemsize == 4
    return tensor.storage.nbytes * (2 if wide else 1)


def _reach(tensor: Tensor) -> tuple[int, int]:
    """First byte and end of a tensor in its storage."""
    layout = tensor.layout
    last = layout.offset + sum((n - 1) * s for n, s in zip(layout.shape, layout.strides, strict=True))
    if min((*layout.strides, 0)) < 0:
        raise UnsoundPlan(f"{tensor} runs backwards")
    return layout.offset * tensor.dtype.itemsize, (last + 1) * tensor.dtype.itemsize


def _views(program: Program, part: Part) -> None:
    """The C++ type states the same views, in the same order."""
    views = ", ".join(m.tensor.cpp for m in part.maps)
    for body in dict.fromkeys(part.bodies):
        if not body.type.endswith((f", {views}>", f"<{views}>")):
            task = part.tasks[0] + part.bodies.index(body)
            raise unsound(program, f"{part.name} is cut for {views}, and its body is {body.type}", task)


def _stop_flag(program: Program, section: int) -> None:
    """The operand that ends a section is the flag that was meant."""
    stop, until = int(program.sections[section]["stop"]), program.meanings[section].until
    if (stop < 0) != (until is None):
        raise UnsoundPlan(f"section {section} reads operand {stop} as its flag; it was to be {until}")
    if until is not None:
        _operand(program, stop, until, section, f"the flag of section {section}, operand {stop},")
        if until.layout.numel != 1 or until.dtype.itemsize != 1:
            raise UnsoundPlan(f"the flag of section {section} is {until}, not one truth value")


# ---- ranges



def _ranges(program: Program) -> None:
    """The tasks of a part share out its grid, each point once."""
    ranges = program.tasks["ranges"]
    known: set[tuple[tuple[tuple[int, int], ...], bytes]] = set()  # layers are cut alike
    for part in (part for meaning in program.meanings for part in meaning.parts):
        _splits_fit(part)
        mine = ranges[slice(*part.tasks)]
        key = (tuple((axis.extent, axis.unit) for axis in part.tiling.grid), mine.tobytes())
        if key not in known:
            _shares_out(program, part, mine)
            known.add(key)


def _shares_out(program: Program, part: Part, ranges: Words) -> None:
    grid, total = part.tiling.grid, 1
    for number, axis in enumerate(grid):
        cuts = np.unique(ranges[:, number], axis=0).tolist()
        total *= len(cuts)
        if not _is_cut(cuts, axis):
            raise _unshared(program, part, number, axis, ranges)
    points = np.unique(ranges[:, : len(grid)].reshape(len(ranges), -1), axis=0)
    if len(grid) > MAX_AXES or not len(points) == len(ranges) == total or ranges[:, len(grid) :].any():
        raise unsound(program, f"the {len(ranges)} tasks of {part.name} are not the {total} points of its grid", part.tasks[0])


def _is_cut(cuts: list[list[int]], axis: Axis) -> bool:
    """True when the intervals follow each other from 0 to the extent, none empty, in whole units."""
    follows = all(a[1] == b[0] for a, b in pairwise(cuts)) and cuts[0][0] == 0 and cuts[-1][1] == axis.extent
    return follows and all(lo < hi and lo % axis.unit == 0 for lo, hi in cuts)


def _unshared(program: Program, part: Part, number: int, axis: Axis, ranges: Words) -> UnsoundPlan:
    """Names the task whose range begins where none ends, or ends where none begins."""
    mine = ranges[:, number].tolist()
    starts, stops = {lo for lo, _ in mine} | {axis.extent}, {hi for _, hi in mine} | {0}
    odd = (t for t, (lo, hi) in enumerate(mine) if lo >= hi or lo % axis.unit or lo not in stops or hi not in starts)
    task = part.tasks[0] + next(odd, 0)
    sentence = f"the tasks of {part.name} do not share out its axis {number} of {axis.extent}, in units of {axis.unit}"
    return unsound(program, sentence, task)


def _splits_fit(part: Part) -> None:
    """Where an axis ends, the dimensions that follow it end too."""
    for tile_map in (*part.tiling.omaps, *part.tiling.imaps):
        for split, extent in zip(tile_map.dims, tile_map.tensor.shape, strict=True):
            if split is not None and not _ends_with(split, part.tiling.grid, extent):
                raise UnsoundPlan(f"{part.name}: {tile_map} does not end with its axis")


def _ends_with(split: Split, grid: tuple[Axis, ...], extent: int) -> bool:
    return split.axis < len(grid) and -(-grid[split.axis].extent * split.each // split.share) <= extent


