"""Stamps, Program -> a timeline: a trace for Perfetto, or one page of HTML that needs nothing else.

Stamps are an array of `mkc.ir.program.STAMP`: which worker ran which task, when it took it up (`taken`), when the last event
it waited for had come (`ready`), and when it was done. Times are nanoseconds on one clock.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from mkc.inspect.colours import colours
from mkc.ir.program import Program, Words
from mkc.passes.render import render_template


def perfetto(stamps: Words, program: Program) -> str:
    """Chrome trace JSON, for ui.perfetto.dev or chrome://tracing. Workers are threads; waiting is a slice of its own."""
    runs = _Runs.of(stamps, program)
    slices = [event for i in range(len(runs.stamps)) for event in _slices(runs, i, program)]
    return json.dumps(
        {"displayTimeUnit": "ns", "traceEvents": [*_threads(runs), *slices]}, separators=(",", ":")
    )


def html(stamps: Words, program: Program, title: str = "timeline", sections: Sequence[str] = ()) -> str:
    """One page: workers down, time across, waiting hatched; hover, wheel to zoom, drag to move; totals by operator.

    `sections` are names for those of the program, where they have better ones than their numbers.
    """
    runs = _Runs.of(stamps, program)
    used, local = np.unique(runs.stamps["task"], return_inverse=True)
    palette = colours(runs.ops)
    ops = sorted(palette)
    data = {
        "title": title,
        "workers": program.num_workers,
        "ops": [{"name": op, "colour": palette[op]} for op in ops],
        "tasks": [[program.names[t], program.paths[t], ops.index(runs.op(t)), int(t)] for t in used],
        "phases": _phases(runs, sections or [f"section {i}" for i in range(len(program.sections))]),
        "worker": runs.stamps["worker"].tolist(),
        "task": local.tolist(),
        "step": runs.step.tolist(),
        "taken": runs.since(runs.stamps["taken"]),
        "ready": runs.since(runs.stamps["ready"]),
        "done": runs.since(runs.stamps["done"]),
    }
    return render_template("inspect/timeline.html.j2", title=title, data=data)


@dataclass(frozen=True, slots=True, eq=False)
class _Runs:
    """Stamps in order of time, and what the program knows of each."""

    stamps: Words  # by the time they were taken
    step: Words  # how often the task had run before
    section: Words
    start: int  # ns
    by_body: tuple[str, ...]
    bodies: Words  # of every task of the program

    @staticmethod
    def of(stamps: Words, program: Program) -> "_Runs":
        stamps = np.sort(np.asarray(stamps), order=("taken", "worker"))
        return _Runs(
            stamps,
            repeats(stamps["task"]),
            _sections(program)[stamps["task"]],
            int(stamps["taken"].min()) if len(stamps) else 0,
            tuple(body.header for body in program.bodies),
            program.tasks["body"],
        )

    @property
    def ops(self) -> Iterable[str]:
        return self.by_body

    def op(self, task: int) -> str:
        return self.by_body[int(self.bodies[task])]

    def since(self, times: Words) -> list[int]:
        """Nanoseconds since the first task was taken up."""
        return [int(t) - self.start for t in times]


def repeats(tasks: Words) -> Words:
    """For each entry, how often its value came before it."""
    order = np.argsort(tasks, kind="stable")
    ranked = tasks[order]
    first = np.searchsorted(ranked, ranked, side="left")
    found = np.empty(len(tasks), np.int64)
    found[order] = np.arange(len(tasks)) - first
    return found


def _sections(program: Program) -> Words:
    """The section of every task."""
    section = np.zeros(len(program.tasks), np.int64)
    for number, words in enumerate(program.sections):
        first = int(words["first_queue"])
        last = first + (1 if words["num_tasks"] else program.num_workers)
        section[program.queue[program.bounds[first] : program.bounds[last]]] = number
    return section


def _phases(runs: _Runs, sections: Sequence[str]) -> list[tuple[str, int, int]]:
    """Every step of every section in order: its name, when its first task was ready, and when its last was done."""
    found = []
    for section, step in sorted(set(zip(runs.section.tolist(), runs.step.tolist(), strict=True))):
        mine = runs.stamps[(runs.section == section) & (runs.step == step)]
        name = f"{sections[section]} step {step}" if len(sections) > 1 else f"step {step}"
        found.append((name, int(mine["ready"].min()) - runs.start, int(mine["done"].max()) - runs.start))
    return found


def _threads(runs: _Runs) -> list[dict[str, object]]:
    workers = [int(w) for w in np.unique(runs.stamps["worker"])]
    process = {"ph": "M", "pid": 0, "name": "process_name", "args": {"name": "megakernel"}}
    names = [
        {"ph": "M", "pid": 0, "tid": w, "name": "thread_name", "args": {"name": f"worker {w}"}}
        for w in workers
    ]
    order = [
        {"ph": "M", "pid": 0, "tid": w, "name": "thread_sort_index", "args": {"sort_index": w}}
        for w in workers
    ]
    return [process, *names, *order]


def _slices(runs: _Runs, i: int, program: Program) -> list[dict[str, object]]:
    """The waiting of a run, when there was any, and its work. Times in microseconds, as the format has it."""
    stamp = runs.stamps[i]
    task, worker = int(stamp["task"]), int(stamp["worker"])
    taken, ready, done = (int(stamp[name]) - runs.start for name in ("taken", "ready", "done"))
    op, path = runs.op(task), program.paths[task]
    facts = {
        "task": task,
        "name": program.names[task],
        "path": path,
        "section": int(runs.section[i]),
        "step": int(runs.step[i]),
        "waited_ns": ready - taken,
    }
    common = {"ph": "X", "pid": 0, "tid": worker}
    wait = {
        **common,
        "name": "wait",
        "cat": "wait",
        "cname": "grey",
        "ts": taken / 1e3,
        "dur": (ready - taken) / 1e3,
    }
    work = {
        **common,
        "name": f"{op} {path}".strip(),
        "cat": op,
        "ts": ready / 1e3,
        "dur": (done - ready) / 1e3,
        "args": facts,
    }
    return [{**wait, "args": {"task": task, "for": program.names[task]}}, work] if ready > taken else [work]
