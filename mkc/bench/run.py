"""A request -> Report. Build, grade, tune if asked, then time everything in turn, one context after another."""

import gc
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from mkc.bench import baselines, models
from mkc.bench.baselines import Run
from mkc.bench.circumstances import commit, machine, versions
from mkc.bench.grading import grade_at
from mkc.bench.results import FLOOR, OURS, Measured, Report, Row, Tuned
from mkc.bench.timing import ours, seconds
from mkc.bench.tune import GRADED, Say, tune
from mkc.errors import MkcError, OptionError
from mkc.ir.target import Target
from mkc.lm import CausalLM
from mkc.targets.kept import COSTS

SHAPES = (
    "vocab_size hidden_size intermediate_size num_hidden_layers num_attention_heads num_key_value_heads head_dim "
    "tie_word_embeddings"
).split()


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is to be measured. Raises OptionError for what cannot be."""

    model: str
    device: str  # cpu or cuda
    contexts: tuple[int, ...]
    steps: int
    repeats: int
    baselines: str
    dtype: str | None = None
    workers: int | None = None
    tune: bool = False
    seconds: float = 600.0
    command: tuple[str, ...] = ()
    batch: int = 1
    max_length: int | None = None

    def __post_init__(self) -> None:
        if self.baselines not in baselines.CHOICES:
            raise OptionError(f"--baselines {self.baselines!r} is not one of {', '.join(baselines.CHOICES)}")
        if self.device == "cuda" and not torch.cuda.is_available():
            raise OptionError("PyTorch finds no GPU here; measure on --target cpu")

    @property
    def room(self) -> int:
        """Of the caches: what the steps need, unless they are to be those of a CausalLM with some `max_length`."""
        return self.max_length or room(max(self.contexts), self.steps)


def bench(wanted: Wanted, say: Say = lambda doing: None) -> Report:
    """Figures only of what is right: where a grade fails nothing is timed. Raises what loading and compiling raise."""
    end = time.monotonic() + wanted.seconds
    with torch.no_grad():
        say(f"building {wanted.model}")
        model = models.make(wanted.model, wanted.device, wanted.dtype)
        _refuse_beyond(wanted, model)
        say(f"compiling {wanted.model}")
        start = time.perf_counter()
        lm = CausalLM(model, batch=wanted.batch, max_length=wanted.room, workers=wanted.workers)
        compile_s = time.perf_counter() - start
        for cache in lm.state.caches:
            cache.normal_()
        found, tuned = _all_graded(wanted, lm, say), None
        if wanted.tune and _all_passed(found):
            tuned = tune(lm, wanted.workers, wanted.contexts, wanted.steps, end, say)
            found = _all_graded(wanted, lm, say)
        if _all_passed(found):
            found = tuple(_timed(wanted, lm, measured, end, say) for measured in found)
        return _report(wanted, lm, compile_s, tuned, found)


# ---- is it right


def _all_graded(wanted: Wanted, lm: CausalLM, say: Say) -> tuple[Measured, ...]:
    return tuple(_graded(wanted, lm, context, say) for context in wanted.contexts)


def _all_passed(found: Sequence[Measured]) -> bool:
    return all(measured.grade.passed for measured in found)


def _graded(wanted: Wanted, lm: CausalLM, context: int, say: Say) -> Measured:
    """The tokens of one launch from this context on, and the logits behind them, beside eager's and float64's."""
    say(f"context {context}: grading against float64")
    nbytes = models.step_bytes(lm.model, context + (wanted.steps - 1) / 2, wanted.batch)
    return Measured(context, nbytes, grade_at(lm, context, min(GRADED, wanted.steps)))


# ---- how long it takes


def _timed(wanted: Wanted, lm: CausalLM, measured: Measured, end: float, say: Say) -> Measured:
    """Ours, the floor and the baselines of a context, taken in turn, so that all see the same machine."""
    context, device = measured.context, lm.model.device
    made: dict[str, Run | Row] = {
        OURS: ours(lm, context, wanted.steps),
        FLOOR: baselines.plain_read(measured.nbytes, device),
    }
    setup: dict[str, float] = {}
    for name in (OURS, FLOOR, *baselines.CHOICES[wanted.baselines]):
        say(f"context {context}: {name}, first runs")
        start = time.perf_counter()
        if name not in made:
            made[name] = _baseline(wanted, lm, context, name, end)
        setup[name] = time.perf_counter() - start
    runs = {name: run for name, run in made.items() if not isinstance(run, Row)}
    for run in (runs[OURS], runs[FLOOR]):
        seconds(run, wanted.steps, device)
    taken: dict[str, list[float]] = {name: [] for name in runs}
    for repeat in range(wanted.repeats):
        say(f"context {context}: repetition {repeat + 1} of {wanted.repeats}")
        for name, run in runs.items():
            taken[name].append(1e6 * seconds(run, wanted.steps, device) / wanted.steps)
    rows = [
        row if isinstance(row, Row) else Row(name, tuple(taken[name]), round(setup[name], 3))
        for name, row in made.items()
    ]
    del made, runs
    _forget_compiled(device)
    return replace(measured, rows=tuple(rows))


def _baseline(wanted: Wanted, lm: CausalLM, context: int, name: str, end: float) -> Run | Row:
    """Built and warm: compiled, and its CUDA graphs recorded. Or why not: others are worth measuring all the same."""
    if time.monotonic() > end:
        return Row(name, skipped=f"the budget of {wanted.seconds:g} s was spent")
    try:
        run = baselines.make(name, lm.model, lm.state.caches, context, room(context, wanted.steps))
        for _ in range(3):
            seconds(run, min(3, wanted.steps), lm.model.device)
    except Exception as error:  # noqa: BLE001  a compiler that is not ours, or memory that is full
        said = str(error) if isinstance(error, MkcError) else f"{type(error).__name__}: {error}"
        return Row(name, skipped=said.splitlines()[0][:200])
    return run


def _forget_compiled(device: torch.device) -> None:
    """Caches and graphs of one context are no use to the next."""
    torch.compiler.reset()
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def room(context: int, steps: int) -> int:
    """Rows of a cache, in whole sixteens."""
    return -(-(context + steps + 1) // 16) * 16


def _refuse_beyond(wanted: Wanted, model: Any) -> None:
    limit = getattr(model.config.get_text_config(), "max_position_embeddings", None) or 2048
    if wanted.room < (least := room(max(wanted.contexts), wanted.steps)):
        raise OptionError(
            f"--max-length {wanted.max_length} has no room for --context {max(wanted.contexts)} and --steps {wanted.steps}; "
            f"ask for {least} or more"
        )
    if wanted.room > limit:
        raise OptionError(
            f"--context {max(wanted.contexts)} and --steps {wanted.steps} go beyond the model's {limit} positions; ask for fewer"
        )


# ---- what it was


def _report(wanted: Wanted, lm: CausalLM, compile_s: float, tuned: Tuned | None, found: tuple[Measured, ...]) -> Report:
    config, program = lm.model.config.get_text_config(), lm.compilation.program
    tuning = getattr(lm.kernel, "tuning", None) if program.streams else None
    shapes = {name: getattr(config, name, None) for name in SHAPES}
    return Report(
        {
            "name": wanted.model, "architecture": type(lm.model).__name__, "dtype": str(lm.model.dtype).removeprefix("torch."),
            "batch": wanted.batch, "parameters": sum(p.numel() for p in lm.model.parameters()), "room": wanted.room, "shapes": shapes,
        },
        machine(lm.model.device), versions(), commit(Path(__file__).parent), wanted.command, wanted.steps, wanted.repeats,
        round(compile_s, 3),
        f"{lm.compilation.target}, {'streaming' if program.streams else 'not streaming'}, {len(program.tasks)} tasks",
        asdict(tuning) if tuning else None, _choices(lm.target), tuned, found,
    )  # fmt: skip


def _choices(target: Target) -> dict[str, Any]:
    return asdict(target.choices) | {name: getattr(target, name) for name in COSTS}
