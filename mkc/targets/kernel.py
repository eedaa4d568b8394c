"""What every target's kernel shares: resolving operands, filling the launch words, reading the report of a hang."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from mkc.errors import InputError, MagnitudeError, MegakernelHang, OutOfRangeError
from mkc.ir.program import (
    ENTRY,
    LAUNCH,
    MAX_OPERANDS,
    MAX_SECTIONS,
    MISFIT,
    OUTSIDE,
    UNPUBLISHED,
    Program,
    Words,
)

SHOWN = 8  # producers or workers in a message
NOT_A_TASK = {0xFFFFFFFF: "the decision whether to run another step", 0xFFFFFFFE: "the end of a section"}


class Kernel(Protocol):
    """A built program. `launch` takes the address of every slot of the program and the steps of every section."""

    program: Program

    def launch(self, addresses: Sequence[int], steps: Sequence[int], stream: int = 0) -> None: ...

    def trace(self, addresses: Sequence[int], steps: Sequence[int]) -> Words:
        """One launch with time stamps: an array of STAMP, in the order in which tasks ended."""
        ...


def pointers(program: Program, addresses: Sequence[int]) -> Words:
    """The address of every operand (uint64)."""
    bases = np.asarray(addresses, np.uint64)
    return np.asarray(bases[program.operands["slot"]] + program.operands["offset"])


@dataclass(frozen=True, slots=True)
class Tuning:
    """How streaming workers share the memory with those that wait: facts of a machine and a plan, found by measuring."""

    window: int = 4  # slots of the ring on their way at once
    pace: int = 0  # percent of the step before, over which a worker spreads its slots; 0: each as soon as there is room
    delay: int = 1000  # cycles from a worker's own sums to its first look for the others'


UNTUNED = Tuning()


def launch_words(
    program: Program,
    tables: dict[str, int],
    steps: Sequence[int],
    deadline_ns: int,
    seed: int = 0,
    tuning: Tuning = UNTUNED,
) -> Words:
    """The launch struct; `tables` names the address of each table. Raises InputError for more steps than can be counted."""
    words = np.zeros(1, LAUNCH)
    for name, address in tables.items():
        words[name] = address
    words["num_workers"] = program.num_workers
    words["num_sections"] = len(program.sections)
    words["num_events"] = program.num_events
    set_launch(words, program, steps, deadline_ns, seed, tuning)
    return words


def set_launch(
    words: Words, program: Program, steps: Sequence[int], deadline_ns: int, seed: int = 0, tuning: Tuning = UNTUNED
) -> None:
    """What differs from launch to launch, in the struct of an earlier one."""
    for section, count in zip(program.sections, steps, strict=True):
        if not 0 <= count < 2**31 or count * int(section["num_tasks"]) + program.num_workers >= 2**32:
            raise InputError(f"{count} steps in one launch; tickets are 32 bits wide, so run fewer at a time")
    words["deadline_ns"] = deadline_ns
    words["steps"][0] = [*steps, *[0] * (MAX_SECTIONS - len(steps))]
    words["seed"] = seed % 2**32
    for name in ("window", "pace", "delay"):
        words[name] = getattr(tuning, name)


def entries(program: Program, addresses: Words) -> Words:
    """Tasks as streaming workers meet them (ENTRY): in the order of the queues, with the addresses of their operands."""
    tasks = program.tasks[program.queue]
    numbers = tasks["operands"][:, None] + np.arange(MAX_OPERANDS)
    made = np.zeros(len(tasks), ENTRY)
    made["task"] = tasks
    made["operands"] = addresses[np.minimum(numbers, len(addresses) - 1)]
    assert program.streams is not None
    made["index"] = program.queue
    made["hops"], made["early"] = program.streams.hops, program.streams.early
    return made


def raise_reported(program: Program, report: Words, progress: Words, deadline_ns: int) -> None:
    """Turn a device's report into an exception: who waited for whom (MegakernelHang), or whose index lay outside.

    `progress` has a PLACE for each worker.
    """
    r = {name: int(report[name][0]) for name in report.dtype.names or ()}
    if not r["failed"]:
        return
    if r["reason"] == OUTSIDE:
        raise OutOfRangeError(
            f"index {r['index']} is outside of a dimension of {r['extent']}: {_named(program, r['task'])}, section "
            f"{r['section']}, step {r['step']}; what this run has written is not to be used"
        )
    waiter = NOT_A_TASK.get(r["task"]) or _named(program, r["task"])
    if r["reason"] == MISFIT:
        raise MagnitudeError(
            f"{waiter} computed a value that is not finite, or 2^64 and more, in step {r['step']}; streaming workers "
            "cannot hand it on. Look for the reason with streams=False"
        )
    if r["reason"] == UNPUBLISHED:
        raise MegakernelHang(
            f"the kernel gave up after {deadline_ns / 1e9:g} s: worker {r['worker']}, step {r['step']}, waited for "
            f"published inputs of {waiter}, which never came"
        )
    lines = [
        f"the kernel gave up after {deadline_ns / 1e9:g} s: worker {r['worker']}, section {r['section']}, step {r['step']}, "
        f"waited for {waiter}; its event {_event(r['event'])} had {r['have']} of {r['need']} signals."
    ]
    if r["event"] < program.num_events:
        lines += _missing(program, r["event"], progress)
    else:
        lines += _standing(program, range(program.num_workers), progress)
    raise MegakernelHang("\n".join(lines))


def _event(event: int) -> str:
    return str(event) if event < 0xFFFFFFFE else "of the scheduler"


def _named(program: Program, task: int) -> str:
    where = f" ({program.paths[task]})" if program.paths[task] else ""
    return f"task {task}, {program.names[task]}{where}"


def _missing(program: Program, event: int, progress: Words) -> list[str]:
    """The producers of an event, and where the workers stand that have them in their queues."""
    producers, owners = program.producers(event), _owners(program)
    lines = [f"  {_named(program, t)}{_queued(owners.get(t))}" for t in producers]
    workers = sorted({owners[t][0] for t in producers if t in owners}) or range(program.num_workers)
    return [f"Producers of event {event}:", *_first(lines), *_standing(program, workers, progress)]


def _standing(program: Program, workers: Sequence[int], progress: Words) -> list[str]:
    return ["Where they stand:", *_first([f"  {_place(program, w, progress)}" for w in workers])]


def _first(lines: list[str]) -> list[str]:
    return lines if len(lines) <= SHOWN else [*lines[:SHOWN], f"  and {len(lines) - SHOWN} more"]


def _place(program: Program, worker: int, progress: Words) -> str:
    task, step = int(progress["task"][worker]), int(progress["step"][worker])
    if task == 0:
        return f"worker {worker} has taken up no task"
    return f"worker {worker} has taken up {_named(program, task - 1)}, in step {step}"


def _queued(owner: tuple[int, int] | None) -> str:
    return f", place {owner[1]} in the queue of worker {owner[0]}" if owner else ""


def _owners(program: Program) -> dict[int, tuple[int, int]]:
    """Where there are queues: the worker of each task, and the task's place in its queue, counted from 1."""
    owners: dict[int, tuple[int, int]] = {}
    for section in program.sections:
        for worker in range(0 if section["num_tasks"] else program.num_workers):
            at = int(section["first_queue"]) + worker
            queue = program.queue[program.bounds[at] : program.bounds[at + 1]].tolist()
            owners |= {task: (worker, place) for place, task in enumerate(queue, 1)}
    return owners
