"""What a variant's own process runs, with the variant's mkc: it builds a kernel, then does as told. mkc/bench/lifeline.py calls it.

A line of JSON for each answer; `error` in one says what went wrong, and `trace` where. What is imported here has to be in every
tree that is to be compared, so it is little.
"""

import json
import os
import queue
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import torch

from mkc.bench import models
from mkc.bench.baselines import FIRST
from mkc.bench.grading import grade_at
from mkc.bench.timing import ours, seconds, traced
from mkc.ir.choices import Choices
from mkc.lm import CausalLM

Answer = dict[str, Any]
WARM = 1, 2  # a context and steps that fit any room


class Subject:
    """A model and its kernel, of one build."""

    def __init__(
        self, model: str, device: str, dtype: str | None, batch: int, room: int, workers: int | None, choices: dict[str, Any],
        grading: bool, stamping: bool,
    ) -> None:  # fmt: skip
        """Kernels that give logits, or stamps, are made now where they are wanted: others build theirs at the same time."""
        made = models.make(model, device, dtype)
        chosen: Any = {name: tuple(value) if isinstance(value, list) else value for name, value in choices.items()}
        given: Any = {"choices": Choices(**chosen)} if choices else {}
        start = time.perf_counter()
        self.lm = CausalLM(made, batch=batch, max_length=room, workers=workers, **given)
        self.compile_s = time.perf_counter() - start
        self.untouched = getattr(self.lm.kernel, "tuning", None)
        seconds(ours(self.lm, *WARM), WARM[1], made.device)
        if grading:
            self.lm.logits_at(WARM[0], [[FIRST]] * batch)
        if stamping:
            traced(self.lm, *WARM)

    def describe(self) -> Answer:
        program = self.lm.compilation.program
        return {
            "plan": f"{self.lm.compilation.target}, {'streaming' if program.streams else 'not streaming'}, {len(program.tasks)} tasks",
            "dtype": str(self.lm.model.dtype).removeprefix("torch."), "compile_s": round(self.compile_s, 3),
            "choices": asdict(self.lm.target.choices), "tuning": asdict(self.untouched) if program.streams and self.untouched else None,
        }  # fmt: skip

    def time(self, context: int, steps: int, count: int, tuning: dict[str, int]) -> Answer:
        """Microseconds a step, `count` times after a run that does not count; and the tokens [batch][steps] of the last."""
        self._begin(tuning)
        run, device = ours(self.lm, context, steps), self.lm.model.device
        taken = [1e6 * seconds(run, steps, device) / steps for _ in range(1 + count)]
        return {"us": taken[1:], "tokens": self.lm.state.told()[:, context + 1 : context + 1 + steps].tolist()}

    def grade(self, context: int, steps: int, tuning: dict[str, int]) -> Answer:
        self._begin(tuning)
        found = grade_at(self.lm, context, steps)
        return {"passed": found.passed, "said": str(found)}

    def stamp(self, context: int, steps: int, tuning: dict[str, int], file: str) -> Answer:
        """Stamps of one launch, and what their tasks are called: arrays in a file."""
        self._begin(tuning)
        stamps, program = traced(self.lm, context, steps), self.lm.compilation.program
        headers = [body.header for body in program.bodies]
        np.savez(file, stamps=stamps, names=np.array(program.names), headers=np.array(headers), bodies=program.tasks["body"])
        return {}

    def _begin(self, tuning: dict[str, int]) -> None:
        """With this tuning, and with the caches that all have: earlier steps wrote to them, each with its own roundings."""
        self._tune(tuning)
        torch.manual_seed(0)
        for cache in self.lm.state.caches:
            cache.normal_()

    def _tune(self, tuning: dict[str, int]) -> None:
        kernel: Any = self.lm.kernel
        streams = self.lm.compilation.program.streams
        if tuning and (self.untouched is None or streams is None):
            raise ValueError("only kernels of streaming workers on a GPU have a tuning")
        if self.untouched is not None:
            kernel.tuning = replace(self.untouched, **tuning)
            if streams and not 1 <= kernel.tuning.window <= streams.ring_slots:
                raise ValueError(f"a window of {kernel.tuning.window} slots in a ring of {streams.ring_slots}")
            if not 0 <= kernel.tuning.pace <= 100:
                raise ValueError(f"a pace of {kernel.tuning.pace} percent of a step")


def main(wanted: dict[str, Any], told: "queue.Queue[Answer]") -> None:
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # whatever else is printed
    with torch.no_grad():
        made: list[Subject] = []
        answers.write(_answered(lambda: _made(made, wanted)))
        while made:
            what = told.get()
            doing = getattr(made[0], what.pop("do"))
            answers.write(_answered(lambda: doing(**what)))  # noqa: B023  (called at once)


def _made(made: list[Subject], wanted: dict[str, Any]) -> Answer:
    made.append(Subject(**wanted))
    return made[0].describe()


def _answered(do: Callable[[], Answer]) -> str:
    try:
        answer = do()
    except Exception as error:  # noqa: BLE001  whatever it is, others are measured all the same
        answer = {"error": f"{type(error).__name__}: {_line(str(error))}", "trace": traceback.format_exc()}
    return json.dumps(answer) + "\n"


def _line(message: str) -> str:
    """The first of a compiler's errors, or else of all lines."""
    lines = message.splitlines() or [""]
    return next((line for line in lines if " error: " in line), lines[0])
