"""A request -> Report. Build, grade, tune if asked, then time everything in turn, one context after another."""

import gc
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from transformers import DynamicCache

from mkc import __version__
from mkc.bench import baselines, models
from mkc.bench.baselines import FIRST, Run
from mkc.bench.results import FLOOR, OURS, Measured, Report, Row
from mkc.bench.tune import search
from mkc.errors import MkcError, OptionError
from mkc.lm import CausalLM
from mkc.numerics import Grade, grade, widened
from mkc.targets.kernel import Tuning

GRADED = 8  # tokens of each context
SHAPES = (
    "vocab_size hidden_size intermediate_size num_hidden_layers num_attention_heads num_key_value_heads head_dim "
    "tie_word_embeddings"
).split()
Say = Callable[[str], None]


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

    def __post_init__(self) -> None:
        if self.baselines not in baselines.CHOICES:
            raise OptionError(f"--baselines {self.baselines!r} is not one of {', '.join(baselines.CHOICES)}")
        if self.device == "cuda" and not torch.cuda.is_available():
            raise OptionError("PyTorch finds no GPU here; measure on --target cpu")

    @property
    def room(self) -> int:
        return _room(max(self.contexts), self.steps)


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
        found = tuple(_graded(wanted, lm, context, say) for context in wanted.contexts)
        if all(measured.grade.passed for measured in found):
            if wanted.tune:
                _tune(wanted, lm, end, say)
            found = tuple(_timed(wanted, lm, measured, end, say) for measured in found)
        return _report(wanted, lm, compile_s, found)


# ---- is it right


def _graded(wanted: Wanted, lm: CausalLM, context: int, say: Say) -> Measured:
    """The tokens of one launch from this context on, and the logits behind them, beside eager's and float64's."""
    say(f"context {context}: grading against float64")
    nbytes = models.step_bytes(lm.model, context + (wanted.steps - 1) / 2, wanted.batch)
    return Measured(context, nbytes, grade_at(lm, context, min(GRADED, wanted.steps)))


def grade_at(lm: CausalLM, context: int, steps: int) -> Grade:
    """Our decoding from the middle of texts, a whole batch, whose keys and values stand in the state."""
    lm.stand_at(context, [[FIRST]] * lm.batch, steps)
    lm.decode_on(steps)
    told = lm.state.told()[:, context + 1 : context + 1 + steps].tolist()
    texts = [[FIRST, *tokens[:-1]] for tokens in told]
    ours = torch.cat(lm.logits_at(context, texts))
    eager = _all_continued(lm, context, texts, lm.model.dtype)
    with widened(lm.model):
        exact = _all_continued(lm, context, texts, torch.float64)
    return grade(ours, eager, exact, torch.tensor(told, device=exact.device).flatten())


def _all_continued(lm: CausalLM, context: int, texts: Sequence[Sequence[int]], dtype: torch.dtype) -> torch.Tensor:
    return torch.cat([_continued(lm, context, text, dtype, row) for row, text in enumerate(texts)])


def _continued(lm: CausalLM, context: int, text: Sequence[int], dtype: torch.dtype, row: int = 0) -> torch.Tensor:
    """Logits [len(text), vocabulary] of the model itself for one sequence of the batch, in one pass."""
    cache = DynamicCache()
    past = [held[row : row + 1, :, :context].to(dtype) for held in lm.state.caches]
    for layer, (keys, values) in enumerate(zip(past[::2], past[1::2], strict=True)):
        cache.update(keys, values, layer)
    ids = torch.tensor([list(text)], device=lm.model.device)
    logits: torch.Tensor = lm.model(input_ids=ids, past_key_values=cache, use_cache=True).logits[0]
    return logits


# ---- how long it takes


def _tune(wanted: Wanted, lm: CausalLM, end: float, say: Say) -> None:
    """Search on the first context, and keep the best for later runs of the same plan."""
    kernel: Any = lm.kernel
    streams = kernel.program.streams
    if streams is None or not isinstance(getattr(kernel, "tuning", None), Tuning):
        raise OptionError("--tune: this plan has no streaming workers, so there is nothing to tune; drop the option")
    steps, ours = wanted.steps, _ours(lm, wanted.contexts[0], wanted.steps)

    def measure(tried: Tuning) -> float | None:
        if time.monotonic() > end:
            return None
        say(f"tuning: window {tried.window}, pace {tried.pace}, delay {tried.delay}")
        kernel.tuning = tried
        return statistics.median(_seconds(ours, steps, lm.model.device) for _ in range(5))

    kernel.tuning = search(kernel.tuning, streams.ring_slots, measure, streams.paced)
    kernel.keep_tuning()


def _timed(wanted: Wanted, lm: CausalLM, measured: Measured, end: float, say: Say) -> Measured:
    """Ours, the floor and the baselines of a context, taken in turn, so that all see the same machine."""
    context, device = measured.context, lm.model.device
    made: dict[str, Run | Row] = {
        OURS: _ours(lm, context, wanted.steps),
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
        _seconds(run, wanted.steps, device)
    taken: dict[str, list[float]] = {name: [] for name in runs}
    for repeat in range(wanted.repeats):
        say(f"context {context}: repetition {repeat + 1} of {wanted.repeats}")
        for name, run in runs.items():
            taken[name].append(1e6 * _seconds(run, wanted.steps, device) / wanted.steps)
    rows = [
        row if isinstance(row, Row) else Row(name, tuple(taken[name]), round(setup[name], 3))
        for name, row in made.items()
    ]
    del made, runs
    _forget_compiled(device)
    return replace(measured, rows=tuple(rows))


def _ours(lm: CausalLM, context: int, steps: int) -> Run:
    return Run(lambda: lm.stand_at(context, [[FIRST]] * lm.batch, steps), lm.decode_on)


def _baseline(wanted: Wanted, lm: CausalLM, context: int, name: str, end: float) -> Run | Row:
    """Built and warm: compiled, and its CUDA graphs recorded. Or why not: others are worth measuring all the same."""
    if time.monotonic() > end:
        return Row(name, skipped=f"the budget of {wanted.seconds:g} s was spent")
    try:
        run = baselines.make(name, lm.model, lm.state.caches, context, _room(context, wanted.steps))
        for _ in range(3):
            _seconds(run, min(3, wanted.steps), lm.model.device)
    except Exception as error:  # noqa: BLE001  a compiler that is not ours, or memory that is full
        said = str(error) if isinstance(error, MkcError) else f"{type(error).__name__}: {error}"
        return Row(name, skipped=said.splitlines()[0][:200])
    return run


def _seconds(run: Run, steps: int, device: torch.device) -> float:
    """By the wall clock, from an idle device to an idle device: launches count."""
    run.rewind()
    _wait(device)
    start = time.perf_counter()
    run.go(steps)
    _wait(device)
    return time.perf_counter() - start


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _forget_compiled(device: torch.device) -> None:
    """Caches and graphs of one context are no use to the next."""
    torch.compiler.reset()
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def _room(context: int, steps: int) -> int:
    """Rows of a cache, in whole sixteens."""
    return -(-(context + steps + 1) // 16) * 16


def _refuse_beyond(wanted: Wanted, model: Any) -> None:
    limit = getattr(model.config.get_text_config(), "max_position_embeddings", None) or 2048
    if wanted.room > limit:
        raise OptionError(
            f"--context {max(wanted.contexts)} and --steps {wanted.steps} go beyond the model's {limit} positions; ask for fewer"
        )


# ---- what it was


def _report(wanted: Wanted, lm: CausalLM, compile_s: float, found: tuple[Measured, ...]) -> Report:
    config, program = lm.model.config.get_text_config(), lm.compilation.program
    tuning = getattr(lm.kernel, "tuning", None) if program.streams else None
    shapes = {name: getattr(config, name, None) for name in SHAPES}
    return Report(
        {
            "name": wanted.model, "architecture": type(lm.model).__name__, "dtype": str(lm.model.dtype).removeprefix("torch."),
            "batch": wanted.batch, "parameters": sum(p.numel() for p in lm.model.parameters()), "room": wanted.room, "shapes": shapes,
        },
        _machine(lm.model.device), _versions(), _commit(), wanted.command, wanted.steps, wanted.repeats, round(compile_s, 3),
        f"{lm.compilation.target}, {'streaming' if program.streams else 'not streaming'}, {len(program.tasks)} tasks",
        asdict(tuning) if tuning else None, found,
    )  # fmt: skip


def _machine(device: torch.device) -> dict[str, Any]:
    if device.type == "cuda":
        gpu = torch.cuda.get_device_properties(device)
        driver = _said("nvidia-smi", "--query-gpu=driver_version,clocks.max.sm", "--format=csv,noheader", f"--id={device.index or 0}")
        name, clock = (*(driver or "unknown, unknown").split(", "), "unknown")[:2]
        return {"device": gpu.name, "driver": name, "max_sm_clock": clock, "sms": gpu.multi_processor_count}
    return {"device": _cpu(), "cpus": len(os.sched_getaffinity(0)), "torch_threads": torch.get_num_threads()}


def _cpu() -> str:
    """The processor's name, where Linux gives one."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    return next((line.partition(": ")[2] for line in lines if line.startswith("model name")), "unknown CPU")


def _versions() -> dict[str, str]:
    packages = metadata.packages_distributions()
    found = {"mkc": __version__, "python": sys.version.split()[0], "cuda of torch": str(torch.version.cuda)}
    for module in ("torch", "transformers", "cupy", "triton"):
        if names := packages.get(module):
            found[module] = metadata.version(names[0])
    return found


def _commit() -> str | None:
    """Of the checkout that this file stands in, "+" after it where files differ from it; None outside of one."""
    here = ("git", "-C", str(Path(__file__).parent))
    commit = _said(*here, "rev-parse", "HEAD")
    return commit and commit + ("+" if _said(*here, "status", "--porcelain", "--untracked-files=no") else "")


def _said(*command: str) -> str | None:
    """What a program prints, or None where it is missing or fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
