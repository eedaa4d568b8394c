"""A model -> where a step's time goes: `python -m mkc.bench.phases --model qwen3-0.6b --context 128`.

One traced launch. A phase is an operator's tasks, from the end of the last operator before to the end of its own last task;
of phases that run the same body the table has the medians over layers and steps.
"""

import argparse
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from mkc.bench import models
from mkc.bench.baselines import FIRST
from mkc.bench.run import room
from mkc.inspect.timeline import repeats
from mkc.ir.program import Program, Words
from mkc.lm import CausalLM


@dataclass(frozen=True, slots=True)
class Phase:
    """Nanoseconds of one operator in one step."""

    name: str  # of what it runs: operators of a model's layers share it
    tasks: int
    took: int  # from the end of the phase before
    waited: int  # of that, until the last of its tasks had its input; less than nothing when it had that before
    worked: int  # the median of its tasks, from input to result


def phases(stamps: Words, program: Program) -> list[Phase]:
    """In the order in which they end. A step's first begins where the step before ended; the first step is left out."""
    found, end = [], 0
    for name, mine in sorted(_operators(stamps, program), key=lambda pair: int(pair[1]["done"].max())):
        last = int(mine["done"].max())
        if end:
            worked = int(np.median(mine["done"] - mine["ready"].astype(np.int64)))
            found.append(Phase(name, len(mine), last - end, int(mine["ready"].max()) - end, worked))
        end = last
    return found


def _operators(stamps: Words, program: Program) -> Iterator[tuple[str, Words]]:
    """Each operator's runs of one step."""
    stamps = np.sort(stamps, order=("taken", "worker"))
    step = repeats(stamps["task"])
    names = np.array([name.partition("[")[0] for name in program.names])
    labels = np.array([f"{program.bodies[body].header} {body}" for body in program.tasks["body"]])
    groups: dict[tuple[int, str], list[int]] = defaultdict(list)
    for i, stamp in enumerate(stamps):
        groups[int(step[i]), str(names[stamp["task"]])].append(i)
    for members in groups.values():
        yield str(min(labels[stamps["task"][members]])), stamps[members]


def table(found: list[Phase]) -> str:
    """A line for each kind of phase, the most expensive first. Microseconds."""
    kinds: dict[str, list[Phase]] = defaultdict(list)
    for phase in found:
        kinds[phase.name].append(phase)
    lines = [f"{'phase':<26}{'times':>7}{'tasks':>7}{'took':>8}{'waited':>8}{'worked':>8}{'together':>10}"]
    for name, same in sorted(kinds.items(), key=lambda kind: -sum(p.took for p in kind[1])):
        took, waited, worked = (np.median([getattr(p, key) for p in same]) / 1e3 for key in ("took", "waited", "worked"))
        total = sum(p.took for p in same) / 1e3
        lines.append(f"{name:<26}{len(same):>7}{same[0].tasks:>7}{took:>8.2f}{waited:>8.2f}{worked:>8.2f}{total:>10.1f}")
    return "\n".join(lines)


def device_name(device: str) -> str:
    return torch.cuda.get_device_name() if device == "cuda" else "CPU"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m mkc.bench.phases", description="Where a step of decoding spends its time.")
    parser.add_argument("--model", default="qwen3-0.6b", help="a configuration of `mkc bench`, or a Hugging Face folder")
    parser.add_argument("--context", type=int, action="append", help="tokens in the caches (default: 128); can be repeated")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--batch", type=int, default=1)
    given = parser.parse_args()
    contexts, device = given.context or [128], "cuda" if torch.cuda.is_available() else "cpu"
    with torch.no_grad():
        model = models.make(given.model, device, None)
        lm = CausalLM(model, batch=given.batch, max_length=room(max(contexts), given.steps))
        for context in contexts:
            lm.stand_at(context, [[FIRST]] * given.batch, given.steps)
            lm.decode_on(given.steps)
            lm.stand_at(context, [[FIRST]] * given.batch, given.steps)
            stamps = lm.trace_on(given.steps)
            print(f"{given.model}, {device_name(device)}, batch {given.batch}, context {context}, {given.steps} steps")
            print(table(phases(stamps, lm.compilation.program)))


if __name__ == "__main__":
    main()
