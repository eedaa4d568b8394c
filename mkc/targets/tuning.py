"""Program, GPU -> Tuning. What a search has kept for this plan on such a GPU, or else a guess from the GPU's rates."""

import hashlib
from dataclasses import asdict, fields

import numpy as np

from mkc.errors import PlanError
from mkc.ir.program import SLOT_BYTES, SLOT_FRAGMENTS, Program, Streams
from mkc.targets import kept
from mkc.targets.kernel import UNTUNED, Tuning

SPREAD = 95  # percent of a step: a worker that fell behind can catch up
PATIENCE = 0.5  # of the time of a share's weights: SmolLM2-135M's are short, and on an H100 a delay of 700 instead of 1,400 gains 6 %
MOST_CYCLES = 1_000_000  # that an entry may ask for; more would be damage


def guessed(streams: Streams, bytes_per_ns: float, ghz: float) -> Tuning:
    """Where shares are short, others are done sooner than the usual delay. `bytes_per_ns` is what one worker reads, `ghz` its clock."""
    fragments, slot = streams.records["fragments"], SLOT_BYTES / bytes_per_ns * ghz
    median = float(np.median(fragments[fragments > 0])) / SLOT_FRAGMENTS  # slots
    return Tuning(min(4, streams.ring_slots), SPREAD, min(UNTUNED.delay, round(PATIENCE * median * slot)))


def recalled(program: Program, gpu: str) -> Tuning | None:
    """What was kept, or None: nothing was, or it is no tuning that this program can run with, or nothing kept counts."""
    given = kept.entry("tuning", _key(program, gpu))
    names = {field.name for field in fields(Tuning)}
    if given.keys() != names or any(type(n) is not int for n in given.values()):
        return None
    tuning = Tuning(**given)
    fits = 1 <= tuning.window <= _streams(program).ring_slots and tuning.pace <= 100
    return tuning if fits and all(0 <= n <= MOST_CYCLES for n in given.values()) else None


def keep(program: Program, gpu: str, tuning: Tuning) -> None:
    """For later kernels of the same program on GPUs of this name."""
    kept.file("tuning", _key(program, gpu), asdict(tuning))


def digest(program: Program) -> str:
    """Of what each worker does in which order. Where memory lies does not count, so room for a longer text changes nothing."""
    made = hashlib.sha256()
    tables = [program.tasks, program.bounds, program.queue]
    if streams := program.streams:
        tables += [streams.records, streams.bounds, streams.hops]
    for table in tables:
        made.update(np.ascontiguousarray(table).tobytes())
    return made.hexdigest()


def _key(program: Program, gpu: str) -> str:
    return f"{gpu}\n{digest(program)}"


def _streams(program: Program) -> Streams:
    if program.streams is None:
        raise PlanError("only programs of streaming workers have a tuning")
    return program.streams
