"""Program -> Program, broken in one place: what a bug in a pass could do to the words."""

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from random import Random
from typing import Any

import numpy as np

from mkc.ir.graph import Kind
from mkc.ir.program import Program, Words

Mutation = Callable[[Program, Random], Program | None]  # None: there is nothing of the kind to break


def mutant(program: Program, kind: str, rng: Random) -> Program | None:
    """The program with one thing of a kind broken, or None."""
    return MUTATIONS[kind](program, rng)


def fingerprint(program: Program) -> int:
    """Equal for equal words."""
    tables = (program.tasks, program.waits, program.sections, program.bounds, program.queue, program.operands)
    bases = tuple(m.tensor.storage.base for x in program.meanings for p in x.parts for m in (*p.tiling.omaps, *p.tiling.imaps))
    return hash((*(table.tobytes() for table in tables), program.slots, program.bodies, bases))


def _edit(program: Program, table: str, change: Callable[[Words], Any]) -> Program:
    words = getattr(program, table).copy()
    change(words)
    changed: Any = {table: words}
    return replace(program, **changed)


def _set(program: Program, table: str, at: Any, field: str, value: Any) -> Program:
    def change(words: Words) -> None:
        words[field][at] = value

    return _edit(program, table, change)


def _task(program: Program, rng: Random) -> int:
    return rng.randrange(len(program.tasks))


def _waiting(program: Program, rng: Random) -> int | None:
    waiting = np.flatnonzero(program.tasks["waits"]).tolist()
    return rng.choice(waiting) if waiting else None


# ---- waits: a task gets a list of its own, so that one task is broken and not all that share its waits


def _with_waits(program: Program, task: int, change: Callable[[list[tuple[int, int, int]]], None]) -> Program:
    words = program.tasks[task]
    waits = program.waits[int(words["first_wait"]) :][: int(words["waits"])].tolist()
    change(waits)
    table = np.array([*program.waits.tolist(), *waits], program.waits.dtype)
    program = replace(program, waits=table)
    program = _set(program, "tasks", task, "first_wait", len(table) - len(waits))
    return _set(program, "tasks", task, "waits", len(waits))


def _changed_wait(program: Program, rng: Random, change: Callable[[int, int, int], tuple[int, int, int] | None]) -> Program | None:
    task = _waiting(program, rng)
    if task is None:
        return None

    def one(waits: list[tuple[int, int, int]]) -> None:
        i = rng.randrange(len(waits))
        found = change(*waits[i])
        waits[i : i + 1] = [] if found is None else [found]

    return _with_waits(program, task, one)


def drop_wait(program: Program, rng: Random) -> Program | None:
    return _changed_wait(program, rng, lambda e, n, lag: None)


def lower_fanin(program: Program, rng: Random) -> Program | None:
    return _changed_wait(program, rng, lambda e, n, lag: (e, rng.randrange(n), lag))


def raise_fanin(program: Program, rng: Random) -> Program | None:
    return _changed_wait(program, rng, lambda e, n, lag: (e, n + rng.randint(1, 3), lag))


def change_lag(program: Program, rng: Random) -> Program | None:
    return _changed_wait(program, rng, lambda e, n, lag: (e, n, rng.choice([x for x in (0, 1, 2) if x != lag])))


def change_lag_of_all(program: Program, rng: Random) -> Program | None:
    """As a plan that takes one step's counters for another's."""
    at = rng.randrange(len(program.waits))
    return _set(program, "waits", at, "lag", 1 - int(program.waits["lag"][at]))


def await_another(program: Program, rng: Random) -> Program | None:
    """A well-formed wait, but for another event."""

    def change(e: int, n: int, lag: int) -> tuple[int, int, int]:
        other = rng.randrange(program.num_events)
        return other, len(program.producers(other)), lag

    return _changed_wait(program, rng, change)


def swap_waits(program: Program, rng: Random) -> Program | None:
    a, b = _task(program, rng), _task(program, rng)

    def change(tasks: Words) -> None:
        for field in ("first_wait", "waits"):
            tasks[field][[a, b]] = tasks[field][[b, a]]

    return _edit(program, "tasks", change)


def drop_stop_wait(program: Program, rng: Random) -> Program | None:
    sections = np.flatnonzero(program.sections["stop_waits"]).tolist()
    if not sections:
        return None
    at = rng.choice(sections)
    count = int(program.sections["stop_waits"][at])
    if rng.random() < 0.5:
        return _set(program, "waits", int(program.sections["first_stop_wait"][at]), "lag", 1)
    return _set(program, "sections", at, "stop_waits", count - 1)


# ---- signals


def _refitted(program: Program) -> Program:
    """Every wait asks for the signals that there are."""
    counts = np.bincount(program.tasks["signal"][program.tasks["signal"] >= 0], minlength=program.num_events)

    def change(waits: Words) -> None:
        waits["fanin"] = counts[waits["event"]]

    return _edit(program, "waits", change)


def redirect_signal(program: Program, rng: Random) -> Program | None:
    return _set(program, "tasks", _task(program, rng), "signal", rng.randrange(-1, program.num_events))


def redirect_signal_and_refit(program: Program, rng: Random) -> Program | None:
    return _refitted(_set(program, "tasks", _task(program, rng), "signal", rng.randrange(-1, program.num_events)))


def swap_signals(program: Program, rng: Random) -> Program | None:
    a, b = _task(program, rng), _task(program, rng)

    def change(tasks: Words) -> None:
        tasks["signal"][[a, b]] = tasks["signal"][[b, a]]

    return _edit(program, "tasks", change)


def share_counter(program: Program, rng: Random) -> Program | None:
    """Two events become one, in words and waits."""
    if program.num_events < 2:
        return None
    a, b = rng.sample(range(program.num_events), 2)
    program = _edit(program, "tasks", lambda t: t["signal"].__setitem__(t["signal"] == a, b))
    program = _edit(program, "waits", lambda w: w["event"].__setitem__(w["event"] == a, b))
    return _refitted(program) if rng.random() < 0.8 else program


# ---- queues


def swap_in_queue(program: Program, rng: Random) -> Program | None:
    a = rng.randrange(len(program.queue))
    b = min(len(program.queue) - 1, a + rng.choice((1, 1, 2, 3)))

    def change(queue: Words) -> None:
        queue[[a, b]] = queue[[b, a]]

    return _edit(program, "queue", change)


def move_in_queues(program: Program, rng: Random) -> Program | None:
    """To another place, which may be in another queue."""
    taken, queues = _queues(program), range(len(program.bounds) - 1)
    source = rng.choice([q for q in queues if taken[q]])
    task = taken[source].pop(rng.randrange(len(taken[source])))
    target = rng.choice(queues)
    taken[target].insert(rng.randrange(len(taken[target]) + 1), task)
    return _with_queues(program, taken)


def move_to_its_place_elsewhere(program: Program, rng: Random) -> Program | None:
    """To another worker's queue, in ascending order: harmless, unless a wait was left out that the queue implied."""
    taken, queues = _queues(program), range(len(program.bounds) - 1)
    source = rng.choice([q for q in queues if taken[q]])
    task = taken[source].pop(rng.randrange(len(taken[source])))
    target = rng.choice(queues)
    taken[target] = sorted([*taken[target], task])
    return _with_queues(program, taken)


def drop_entry(program: Program, rng: Random) -> Program | None:
    taken = _queues(program)
    source = rng.choice([q for q in taken if q])
    source.pop(rng.randrange(len(source)))
    return _with_queues(program, taken)


def duplicate_entry(program: Program, rng: Random) -> Program | None:
    taken = _queues(program)
    target = rng.choice(taken)
    target.insert(rng.randrange(len(target) + 1), _task(program, rng))
    return _with_queues(program, taken)


def move_bound(program: Program, rng: Random) -> Program | None:
    at = rng.randrange(len(program.bounds))
    return _edit(program, "bounds", lambda b: b.__setitem__(at, max(0, int(b[at]) + rng.choice((-1, 1)))))


def change_section(program: Program, rng: Random) -> Program | None:
    at, field = rng.randrange(len(program.sections)), rng.choice(("first_queue", "num_tasks"))
    return _set(program, "sections", at, field, max(0, int(program.sections[field][at]) + rng.choice((-1, 1))))


def _queues(program: Program) -> list[list[int]]:
    return [program.queue[lo:hi].tolist() for lo, hi in pairwise(program.bounds.tolist())]


def _with_queues(program: Program, queues: list[list[int]]) -> Program:
    bounds = np.cumsum([0, *map(len, queues)]).astype(np.uint32)
    return replace(program, queue=np.array([t for q in queues for t in q], np.uint32), bounds=bounds)


# ---- memory


def shift_operand(program: Program, rng: Random) -> Program | None:
    at = rng.randrange(len(program.operands))
    offset = int(program.operands["offset"][at]) + rng.choice((-64, -16, -4, -1, 1, 4, 8, 16, 32, 64, 256))
    return None if offset < 0 else _set(program, "operands", at, "offset", offset)


def swap_operands(program: Program, rng: Random) -> Program | None:
    """One takes the other's place, or both do."""
    a, b = (rng.randrange(len(program.operands)) for _ in range(2))
    new = program.operands[[b, a]] if rng.random() < 0.5 else program.operands[[b, b]]
    return _edit(program, "operands", lambda o: o.__setitem__([a, b], new))


def point_elsewhere(program: Program, rng: Random) -> Program | None:
    """A task takes operands from another place of the table."""
    return _set(program, "tasks", _task(program, rng), "operands", rng.randrange(len(program.operands) + 2))


def alias_tensors(program: Program, rng: Random) -> Program | None:
    """As a placement that gives two tensors the same bytes, in the words and in what they mean."""
    storages = sorted(
        {m.tensor.storage for x in program.meanings for p in x.parts for m in (*p.tiling.omaps, *p.tiling.imaps)},
        key=lambda s: (s.name, s.base),
    )
    arena = [s for s in storages if s.kind is Kind.ARENA]
    if len(arena) < 2:
        return None
    moved, onto = rng.sample(arena, 2)
    base = onto.base + rng.choice((0, 0, -16, 16, 4, 64))
    limit = next(slot.nbytes for slot in program.slots if slot.kind is Kind.ARENA)
    if not 0 <= base <= limit - moved.nbytes or base == moved.base:
        return None
    return _moved(program, moved, base)


def _moved(program: Program, storage: Any, base: int) -> Program:
    operands, meanings = program.operands.copy(), []
    for meaning in program.meanings:
        parts = []
        for part in meaning.parts:
            omaps, imaps = (
                tuple(
                    replace(m, tensor=replace(m.tensor, storage=replace(storage, base=base))) if m.tensor.storage == storage else m
                    for m in maps
                )
                for maps in (part.tiling.omaps, part.tiling.imaps)
            )
            for i, m in enumerate((*part.tiling.omaps, *part.tiling.imaps), part.operands):
                if m.tensor.storage == storage:
                    operands["offset"][i] = int(operands["offset"][i]) + base - storage.base
            parts.append(replace(part, tiling=replace(part.tiling, omaps=omaps, imaps=imaps)))
        meanings.append(replace(meaning, parts=tuple(parts)))
    return replace(program, operands=operands, meanings=tuple(meanings))


def shrink_slot(program: Program, rng: Random) -> Program | None:
    at = rng.randrange(len(program.slots))
    slots = list(program.slots)
    slots[at] = replace(slots[at], nbytes=max(0, slots[at].nbytes - rng.choice((1, 4, 64, 256))))
    return replace(program, slots=tuple(slots))


def change_range(program: Program, rng: Random) -> Program | None:
    task, axis, side = _task(program, rng), rng.randrange(3), rng.randrange(2)
    value = int(program.tasks["ranges"][task, axis, side]) + rng.choice((-8, -1, 1, 8))
    return _set(program, "tasks", (task, axis, side), "ranges", value)


def swap_ranges(program: Program, rng: Random) -> Program | None:
    """Two tasks of one part, so that who signals and waits does so for another's tile."""
    parts = [part for meaning in program.meanings for part in meaning.parts if part.tasks[1] - part.tasks[0] > 1]
    if not parts:
        return None
    a, b = rng.sample(range(*rng.choice(parts).tasks), 2)
    return _edit(program, "tasks", lambda t: t["ranges"].__setitem__([a, b], t["ranges"][[b, a]]))


def move_flag(program: Program, rng: Random) -> Program | None:
    sections = np.flatnonzero(program.sections["stop"] >= 0).tolist()
    if not sections:
        return None
    at = rng.choice(sections)
    if rng.random() < 0.5:
        return _set(program, "sections", at, "stop", rng.randrange(-1, len(program.operands)))
    return _set(program, "operands", int(program.sections["stop"][at]), "slot", rng.randrange(len(program.slots)))


def swap_bodies(program: Program, rng: Random) -> Program | None:
    if len(program.bodies) < 2:
        return None
    a, b = rng.sample(range(len(program.bodies)), 2)
    if rng.random() < 0.5:
        bodies = list(program.bodies)
        bodies[a], bodies[b] = bodies[b], bodies[a]
        return replace(program, bodies=tuple(bodies))
    return _set(program, "tasks", _task(program, rng), "body", a)


MUTATIONS: dict[str, Mutation] = {
    f.__name__: f
    for f in (
        drop_wait, lower_fanin, raise_fanin, change_lag, change_lag_of_all, await_another, swap_waits, drop_stop_wait,
        redirect_signal, redirect_signal_and_refit, swap_signals, share_counter, swap_in_queue, move_in_queues,
        move_to_its_place_elsewhere, drop_entry, duplicate_entry, move_bound, change_section, shift_operand,
        swap_operands, point_elsewhere, alias_tensors, shrink_slot, change_range, swap_ranges, move_flag, swap_bodies,
    )
}  # fmt: skip
