"""CausalLM -> Tuned. The machine's costs, then the plan, then the pace of its streams, each found by running it; kept for later."""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from math import inf
from typing import Any

from mkc import targets
from mkc.bench import fit
from mkc.bench.grading import Answers, grade_at, remembered
from mkc.bench.results import Tuned
from mkc.bench.search import NOISE, pacing, planning, search
from mkc.bench.timing import ours, seconds
from mkc.errors import MkcError
from mkc.ir.choices import Choices
from mkc.ir.cost import Costs
from mkc.ir.target import Target
from mkc.lm import CausalLM
from mkc.targets import kept, tuning
from mkc.targets.kernel import Tuning

GRADED = 8  # tokens of each context
TRIED = 5  # times that a plan is run
PLANNING = 0.6  # of the time, where pacing follows
Say = Callable[[str], None]


@dataclass(slots=True)
class Trials:
    """Plans of one model, each graded at all contexts and then timed at the first, until the clock says `end`."""

    lm: CausalLM
    contexts: Sequence[int]
    steps: int
    end: float
    say: Say = lambda doing: None
    ask: Answers = field(default_factory=remembered)
    taken: dict[str, float] = field(default_factory=dict)  # seconds, by what the plan is
    refused: list[str] = field(default_factory=list)

    def __call__(self, target: Target) -> float | None:
        """Seconds; infinitely many of a plan that is not right, or cannot be built; None when there is no time left."""
        if time.monotonic() > self.end:
            return None
        self.say(f"tuning, plan {len(self.taken) + 1}: {_called(target)}")
        try:
            self.lm.replan(target)
            plan = tuning.digest(self.lm.compilation.program)
            if plan not in self.taken:
                self.taken[plan] = self._graded() or self._timed()
            return self.taken[plan]
        except MkcError as error:
            self._refuse(str(error).splitlines()[0])
            return inf

    def _graded(self) -> float:
        """0, or infinitely many seconds for what nobody should use."""
        for context in self.contexts:
            grade = grade_at(self.lm, context, min(GRADED, self.steps), self.ask)
            if not grade.passed:
                self._refuse(f"context {context}: {grade}")
                return inf
        return 0

    def _timed(self) -> float:
        return min(self.times(TRIED))

    def times(self, count: int) -> list[float]:
        """Of the plan that stands, which has run before."""
        run = ours(self.lm, self.contexts[0], self.steps)
        seconds(run, self.steps, self.lm.model.device)
        return [seconds(run, self.steps, self.lm.model.device) for _ in range(count)]

    def _refuse(self, reason: str) -> None:
        self.refused.append(f"{_called(self.lm.target)}: {reason[:200]}")


def tune(lm: CausalLM, workers: int | None, contexts: Sequence[int], steps: int, end: float, say: Say) -> Tuned:
    """Search on the first context and keep the best, for later kernels of the same model on this machine. `lm` has it then."""
    device = lm.model.device
    machine = targets.machine_name(device.type, device.index)
    say("tuning: measuring the machine")
    costs = fit.measure(device)
    kept.keep_costs(machine, costs)
    default = targets.named(device.type, device.index, workers)
    trials = Trials(lm, contexts, steps, end, say)
    planned = _planned(trials, default, costs)
    lm.replan(planned)
    pace = _paced(trials) if lm.compilation.program.streams else None
    before, after = _compared(trials, default, planned, pace)
    shorter = statistics.median(after) < statistics.median(before)
    best = planned if shorter else default
    if not shorter:
        lm.replan(default)
    if shorter and pace:
        _kernel(lm).keep_tuning()
    kept.keep([lm.graph], replace(best, machine=machine), "static")
    return Tuned(machine, asdict(costs), shorter, _us(before, steps), _us(after, steps), len(trials.taken), tuple(trials.refused))


def _planned(trials: Trials, default: Target, costs: Costs) -> Target:
    """The target whose plan takes the shortest: with guessed costs or measured ones, then with other choices."""
    end, streams = trials.end, bool(trials.lm.compilation.program.streams)
    if streams:
        trials.end -= (1 - PLANNING) * (end - time.monotonic())
    best = search(_Costed(default, False), {"measured": (True,)}, lambda tried: trials(tried.of(costs)), NOISE).of(costs)
    settings = planning(streams, trials.lm.batch)
    chosen: Choices = search(best.choices, settings, lambda choices: trials(replace(best, choices=choices)), NOISE)
    trials.end = end
    return replace(best, choices=chosen)


@dataclass(frozen=True, slots=True)
class _Costed:
    target: Target
    measured: bool

    def of(self, costs: Costs) -> Target:
        return costs.on(self.target) if self.measured else self.target


def _paced(trials: Trials) -> Tuning:
    """The pace of the plan that stands, whose kernel has it then."""
    kernel, streams = _kernel(trials.lm), trials.lm.compilation.program.streams
    assert streams is not None

    def measure(tried: Tuning) -> float | None:
        if time.monotonic() > trials.end:
            return None
        trials.say(f"tuning: window {tried.window}, pace {tried.pace}, delay {tried.delay}")
        kernel.tuning = tried
        return statistics.median(trials.times(TRIED))

    kernel.tuning = search(kernel.tuning, pacing(streams.ring_slots, streams.paced), measure)
    found: Tuning = kernel.tuning
    return found


def _compared(trials: Trials, default: Target, planned: Target, pace: Tuning | None) -> tuple[list[float], list[float]]:
    """Seconds of the default and of what was found, taken in turn; the latter stands then, unless it is the default."""
    if planned == default and not pace:
        taken = trials.times(TRIED)
        return taken, taken
    before, after = list[float](), list[float]()
    for taken, target in 2 * [(before, default), (after, planned)]:
        trials.say(f"tuning: comparing, {_called(target)}")
        trials.lm.replan(target)
        if pace:
            kernel = _kernel(trials.lm)
            kernel.tuning = kernel.untuned if target is default else pace
        taken.extend(trials.times(TRIED))
    return before, after


def _called(target: Target) -> str:
    return str(target.choices) or "the default choices"


def _kernel(lm: CausalLM) -> Any:
    """That of a GPU has a tuning."""
    return lm.kernel


def _us(taken: Sequence[float], steps: int) -> tuple[float, ...]:
    return tuple(1e6 * took / steps for took in taken)
