"""A model -> where a step's time goes: `python -m mkc.bench.phases --model qwen3-0.6b --context 128`.

One traced launch. A phase is an operator's tasks, from the end of the last operator before to the end of its own last task;
of phases that run the same body the table has the medians over layers and steps.
"""

import argparse
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from mkc.bench import models
from mkc.bench.run import room
from mkc.bench.timing import traced
from mkc.inspect.timeline import repeats
from mkc.ir.program import Program, Words
from mkc.lm import CausalLM


@dataclass(frozen=True, slots=True)
class Spread:
    """Nanoseconds of the tasks of one phase: the least, the median and the most."""

    least: int
    median: int
    most: int

    @staticmethod
    def of(ns: Words) -> "Spread":
        return Spread(int(ns.min()), int(np.median(ns)), int(ns.max()))


@dataclass(frozen=True, slots=True)
class Phase:
    """One operator in one step. The first three spreads count from the end of the phase before, and may be less than nothing."""

    name: str  # of what it runs: operators of a model's layers share it
    tasks: int
    taken: Spread  # up by a worker
    ready: Spread  # its input was there
    done: Spread
    work: Spread  # from input to result

    @property
    def took(self) -> int:
        """From the end of the phase before."""
        return self.done.most

    @property
    def waited(self) -> int:
        """Of that, until the last of its tasks had its input."""
        return self.ready.most

    @property
    def worked(self) -> int:
        """The median of its tasks."""
        return self.work.median


@dataclass(frozen=True, slots=True)
class Labels:
    """What stamps do not say of a program's tasks: the operator of each, and what it runs."""

    operators: Sequence[str]
    kinds: Sequence[str]

    @staticmethod
    def of(program: Program) -> "Labels":
        return Labels.made(program.names, [body.header for body in program.bodies], program.tasks["body"])

    @staticmethod
    def made(names: Iterable[str], headers: Sequence[str], bodies: Iterable[int]) -> "Labels":
        """From the names of tasks, the operators that bodies are of, and the body of each task."""
        return Labels([name.partition("[")[0] for name in names], [f"{headers[body]} {body}" for body in bodies])


def phases(stamps: Words, labels: Labels) -> list[Phase]:
    """In the order in which they end. A step's first begins where the step before ended; the first step is left out."""
    found, end = list[Phase](), 0
    for name, mine in sorted(_operators(stamps, labels), key=lambda pair: int(pair[1]["done"].max())):
        if end:
            found.append(_phase(name, mine, end))
        end = int(mine["done"].max())
    return found


def _phase(name: str, mine: Words, end: int) -> Phase:
    """Of these stamps, after the phase that has ended then."""
    taken, ready, done = (mine[key].astype(np.int64) - end for key in ("taken", "ready", "done"))
    return Phase(name, len(mine), *map(Spread.of, (taken, ready, done, done - ready)))


def _operators(stamps: Words, labels: Labels) -> Iterator[tuple[str, Words]]:
    """Each operator's runs of one step."""
    stamps = np.sort(stamps, order=("taken", "worker"))
    step = repeats(stamps["task"])
    groups: dict[tuple[int, str], list[int]] = defaultdict(list)
    for i, task in enumerate(stamps["task"]):
        groups[int(step[i]), labels.operators[task]].append(i)
    for members in groups.values():
        yield min(labels.kinds[task] for task in stamps["task"][members]), stamps[members]


def table(found: list[Phase]) -> str:
    """A line for each kind of phase, the most expensive first. Microseconds."""
    lines = [f"{'phase':<26}{'times':>7}{'tasks':>7}{'took':>8}{'waited':>8}{'worked':>8}{'together':>10}"]
    for name, same in _kinds(found):
        took, waited, worked = (np.median([getattr(p, key) for p in same]) / 1e3 for key in ("took", "waited", "worked"))
        total = sum(p.took for p in same) / 1e3
        lines.append(f"{name:<26}{len(same):>7}{same[0].tasks:>7}{took:>8.2f}{waited:>8.2f}{worked:>8.2f}{total:>10.1f}")
    return "\n".join(lines)


SPREADS = ("taken", "ready", "done", "work")


def spreads(found: list[Phase]) -> str:
    """The same lines: how the tasks of a phase spread around its course, each figure the median over layers and steps."""
    heads = "".join(f" |{f'{name}: least':>14}{'median':>8}{'most':>8}" for name in SPREADS)
    lines = [f"{'phase':<26}{heads}"]
    for name, same in _kinds(found):
        lines.append(f"{name:<26}" + "".join(f" |{low:>14.2f}{mid:>8.2f}{high:>8.2f}" for low, mid, high in _medians(same)))
    return "\n".join(lines)


def _medians(same: list[Phase]) -> Iterator[tuple[float, float, float]]:
    """Least, median and most of each of SPREADS in microseconds."""
    for key in SPREADS:
        each = [getattr(phase, key) for phase in same]
        low, mid, high = np.median([(s.least, s.median, s.most) for s in each], axis=0) / 1e3
        yield float(low), float(mid), float(high)


def _kinds(found: list[Phase]) -> list[tuple[str, list[Phase]]]:
    kinds: dict[str, list[Phase]] = defaultdict(list)
    for phase in found:
        kinds[phase.name].append(phase)
    return sorted(kinds.items(), key=lambda kind: -sum(phase.took for phase in kind[1]))


def device_name(device: str) -> str:
    return torch.cuda.get_device_name() if device == "cuda" else "CPU"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m mkc.bench.phases", description="Where a step of decoding spends its time.")
    parser.add_argument("--model", default="qwen3-0.6b", help="a configuration of `mkc bench`, or a Hugging Face folder")
    parser.add_argument("--context", type=int, action="append", help="tokens in the caches (default: 128); can be repeated")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--spread", action="store_true", help="also how the tasks of a phase spread around its course")
    given = parser.parse_args()
    contexts, device = given.context or [128], "cuda" if torch.cuda.is_available() else "cpu"
    with torch.no_grad():
        model = models.make(given.model, device, None)
        lm = CausalLM(model, batch=given.batch, max_length=room(max(contexts), given.steps))
        for context in contexts:
            found = phases(traced(lm, context, given.steps), Labels.of(lm.compilation.program))
            print(f"{given.model}, {device_name(device)}, batch {given.batch}, context {context}, {given.steps} steps")
            print(table(found))
            if given.spread:
                print(spreads(found))


if __name__ == "__main__":
    main()
