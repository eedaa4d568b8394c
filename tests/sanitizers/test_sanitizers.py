"""Whole kernels under the sanitizers: no race, no step outside, nothing undefined; and a race where a wait is missing."""

import os
import subprocess
from collections.abc import Sequence
from ctypes import string_at
from dataclasses import replace
from pathlib import Path
from random import Random

import numpy as np
import pytest
from laws.orders import by_conflicts, by_plan
from laws.test_interpreter import Memory
from oracle import cut_for, interpreted, machine, raised
from random_graphs.models import RandomLoop

from mkc import cache
from mkc.compiler import Compilation
from mkc.frontend.executable import Bound
from mkc.ir.graph import Kind
from mkc.ir.program import MAX_SECTIONS, Program
from mkc.ir.tasks import Schedule, Wait
from mkc.passes.encode import encode
from mkc.paths import TEMPLATES
from mkc.targets.interpreter import Interpreter

REPLAY = Path(__file__).with_name("replay.cpp")
FLAGS = ("-std=c++20", "-O1", "-g", "-fno-omit-frame-pointer", "-pthread", "-Wno-psabi")
RACES, FAULTS = "thread", "address,undefined"
OPTIONS = {"TSAN_OPTIONS": "exitcode=66:halt_on_error=1", "ASAN_OPTIONS": "exitcode=66", "UBSAN_OPTIONS": "halt_on_error=1:exitcode=66"}


def built(made: Compilation, sanitizers: str, folder: Path) -> Path:
    """The page, the pool and the replay in one program, kept with the kernels."""
    sources = [made.source.complete, (TEMPLATES / "mkc/host/pool.cpp").read_text(), REPLAY.read_text()]
    command = ["g++", *FLAGS, f"-fsanitize={sanitizers}", f"-I{TEMPLATES}"]

    def build() -> bytes:
        for number, text in enumerate(sources):
            folder.joinpath(f"{number}.cpp").write_text(text)
        files = [str(folder / f"{number}.cpp") for number in range(len(sources))]
        subprocess.run([*command, *files, "-o", str(folder / "replay")], check=True)
        return folder.joinpath("replay").read_bytes()

    program = folder / "replay.kept"
    program.write_bytes(cache.kept("replay", "\n".join([*command, *sources]), build))
    program.chmod(0o700)
    return program


def replayed(program: Program, path: Path, words: Memory, steps: Sequence[int], launches: int) -> tuple[str, Memory]:
    """What the sanitizer said, and the memory that the launches left."""
    counts = [program.num_workers, program.num_events, program.num_counters, launches, *steps, *[0] * (MAX_SECTIONS - len(steps))]
    tables = [np.array(counts, np.uint32), program.tasks, program.waits, program.sections, program.bounds, program.queue, program.operands]
    given, left = path.with_suffix(".in"), path.with_suffix(".out")
    with given.open("wb") as file:
        for blob in (*tables, *words):
            file.write(np.uint64(blob.nbytes).tobytes() + blob.tobytes())
    done = subprocess.run([path, given, left], env={**os.environ, **OPTIONS}, capture_output=True, text=True, timeout=200, check=False)
    if done.returncode == 66:
        return done.stderr, []
    assert done.returncode == 0, done.stderr
    flat, sizes = np.fromfile(left, np.uint8), [w.nbytes for w in words]
    return done.stderr, np.split(flat, np.cumsum(sizes)[:-1])


# ---- programs


def looping(policy: str, count: int, size: int) -> tuple[Compilation, Memory]:
    """Random models that feed their own states, in one kernel, cut finer than there are workers."""
    models = [RandomLoop(seed, size) for seed in range(30_000, 30_000 + count)]
    with cut_for(5):
        graphs = [raised(model, *model.example_inputs, loops=True) for model in models]
        executable = interpreted(graphs, machine(3), policy)
    bound = Bound(executable, [model.example_inputs for model in models])
    bound.renew()
    slots = zip(executable.compilation.program.slots, bound.addresses, strict=True)
    return executable.compilation, [np.frombuffer(string_at(address, slot.nbytes), np.uint8) for slot, address in slots]


def interpret(made: Compilation, words: Memory, steps: Sequence[int], launches: int) -> Memory:
    left = [w.copy() for w in words]
    for _ in range(launches):
        Interpreter(made.program, [s.tasks for s in made.sections], Random(0)).run(left, steps)
    return left


@pytest.mark.parametrize(("sanitizers", "policy"), [(RACES, "static"), (RACES, "dynamic"), (FAULTS, "static")])
def test_a_kernel_runs_clean_and_leaves_what_the_interpreter_leaves(sanitizers: str, policy: str, tmp_path: Path) -> None:
    made, words = looping(policy, count=4, size=6)
    steps = [3, 1, 2, 3]
    said, left = replayed(made.program, built(made, sanitizers, tmp_path), words, steps, launches=3)
    assert said == ""
    for slot, ours, theirs in zip(made.program.slots, interpret(made, words, steps, launches=3), left, strict=True):
        if slot.kind in (Kind.OUTPUT, Kind.STATE):
            np.testing.assert_allclose(theirs.view(np.float32), ours.view(np.float32), rtol=1e-3, atol=1e-3)


def test_a_step_outside_is_seen(tmp_path: Path) -> None:
    made, words = looping("static", count=4, size=6)
    operands = made.program.operands.copy()
    operands["offset"][0] += made.program.slots[operands["slot"][0]].nbytes - 4
    said, _ = replayed(replace(made.program, operands=operands), built(made, FAULTS, tmp_path), words, [1, 1, 1, 1], launches=1)
    assert "heap-buffer-overflow" in said


FAULTY = {
    "shift exponent 40 is too large": "volatile int by = 40; volatile int moved = 1 << by; (void)moved;",
    "signed integer overflow": "volatile int most = 0x7FFFFFFF; volatile int more = most + 1; (void)more;",
    "misaligned address": "static char bytes[8]; int* volatile odd = reinterpret_cast<int*>(bytes + 1); *odd = 1;",
}


@pytest.mark.parametrize("said", FAULTY)
def test_undefined_behaviour_is_seen(said: str, tmp_path: Path) -> None:
    """So that no report from UBSan means something."""
    made, words = looping("static", count=1, size=5)
    page = made.source.complete.replace("    switch (body) {", f"    {FAULTY[said]}\n    switch (body) {{")
    assert page != made.source.complete
    faulty = replace(made, source=replace(made.source, complete=page))
    reported, _ = replayed(made.program, built(faulty, FAULTS, tmp_path), words, [1], launches=1)
    assert said in reported


def test_every_wait_that_matters_is_missed_as_a_race(tmp_path: Path) -> None:
    """So the test above can fail. A wait matters when without it some conflict is left unordered."""
    made, words = looping("static", count=1, size=5)
    path = built(made, RACES, tmp_path)
    (section,) = made.sections
    needed, missed = by_conflicts(section.tasks, 2), 0
    for task, dropped in [(t, w) for t, waits in enumerate(section.schedule.waits) for w in waits]:
        broken = without(section.schedule, task, dropped)
        if all(n & ~kept == 0 for n, kept in zip(needed, by_plan(broken, 2), strict=True)):
            continue
        assert races(broken, path, words), f"{section.tasks.name(task)} without {dropped}"
        missed += 1
    assert missed > 3


def test_tickets_without_events_are_a_race(tmp_path: Path) -> None:
    """Drawing tickets orders much by itself, so a single wait is not missed every time."""
    made, words = looping("dynamic", count=1, size=5)
    plan = made.sections[0].schedule
    assert races(replace(plan, waits=((),) * len(plan.waits)), built(made, RACES, tmp_path), words, steps=300)


def races(plan: Schedule, path: Path, words: Memory, steps: int = 3) -> bool:
    """Whether ThreadSanitizer finds one; it forgets old accesses, so it may need several looks."""
    return any("data race" in replayed(encode([plan]), path, words, [steps], launches=20)[0] for _ in range(5))


def without(plan: Schedule, task: int, dropped: Wait) -> Schedule:
    kept = tuple(w for w in plan.waits[task] if w != dropped)
    return replace(plan, waits=(*plan.waits[:task], kept, *plan.waits[task + 1 :]))
