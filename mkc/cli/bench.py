"""`mkc bench`: the speed of decoding beside its baselines and the floor, as a table and as JSON."""

import json
import sys
from importlib import import_module
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from mkc.bench.results import FLOOR, OURS, Measured, Report, Row, Tuned
from mkc.cli.progress import progress
from mkc.cli.subject import TargetName
from mkc.errors import OptionError, TargetError
from mkc.targets import cuda

WIDTH = 110  # of the table, also where the terminal is narrower or there is none


def bench(
    model: Annotated[
        str,
        typer.Option(
            help="A Hugging Face folder or id, or a configuration with random weights: qwen3-0.6b, qwen3-1.7b, qwen3-8b, "
            "llama-3.2-1b, gemma-3-1b, qwen2.5-1.5b, smollm2-135m, tiny."
        ),
    ] = "qwen3-0.6b",
    context: Annotated[
        list[int] | None,
        typer.Option(min=1, help="Tokens in the caches when the steps begin; can be repeated.", show_default="128"),
    ] = None,
    batch: Annotated[int, typer.Option(min=1, max=16, help="Sequences at a time, all at the same context.")] = 1,
    steps: Annotated[int, typer.Option(min=2, help="Tokens of one measurement.")] = 32,
    repeats: Annotated[int, typer.Option(min=1, help="Measurements of each kind, taken in turn.")] = 9,
    baselines: Annotated[
        Literal["none", "eager", "compile", "lean", "all"] | None,
        typer.Option(
            help="What to measure beside it: Hugging Face eager; that and torch.compile of it; that and a compiled lean "
            "decoder; or everything, in every mode.",
            show_default="lean on a GPU, eager elsewhere",
        ),
    ] = None,
    tune: Annotated[
        bool, typer.Option("--tune", help="First search for the best plan and pace, and keep them for later.")
    ] = False,
    max_length: Annotated[
        int | None,
        typer.Option(min=2, help="Room in the caches: that of the CausalLM which --tune is for.", show_default="what the steps need"),
    ] = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", dir_okay=False, help="A file for all that was measured.")
    ] = None,
    seconds: Annotated[float, typer.Option(min=1, help="Begin no baseline, and no trial of --tune, later than this.")] = 600,
    dtype: Annotated[
        Literal["bfloat16", "float16", "float32"] | None,
        typer.Option(help="Of the weights.", show_default="a checkpoint's own; bfloat16 on a GPU, float32 elsewhere"),
    ] = None,
    target: Annotated[
        TargetName | None, typer.Option(help="Where to measure.", show_default="cuda if there is a GPU")
    ] = None,
    workers: Annotated[int | None, typer.Option(min=1, max=1024, help="Workers of the kernel.")] = None,
) -> None:
    """Check a language model against float64, then time its decoding beside baselines and a plain read of the same bytes."""
    if json_file and not json_file.absolute().parent.is_dir():
        raise OptionError(f"there is no folder {json_file.absolute().parent} to write {json_file.name} to")
    if target == "cuda":
        cuda.target()  # raises what is missing
    device = target or ("cuda" if cuda.device_count() else "cpu")
    try:
        measuring = import_module("mkc.bench.run")  # needs packages that are not installed for everyone
    except ImportError as error:
        raise TargetError(f'mkc bench needs transformers: pip install "mkc-compiler[hf]" ({error})') from error
    import_module("transformers.utils.logging").disable_progress_bar()  # there is one of ours
    wanted = measuring.Wanted(
        model, device, tuple(context or (128,)), steps, repeats, baselines or ("lean" if device == "cuda" else "eager"),
        dtype, workers, tune, seconds, ("mkc", *sys.argv[1:]), batch, max_length,
    )  # fmt: skip
    with progress(f"building {model}") as status:
        report: Report = measuring.bench(wanted, lambda doing: status.update(escape(doing)))
    if json_file:
        json_file.write_text(json.dumps(report.json(), indent=1) + "\n")
    _show(report)
    if not report.passed:
        print("mkc: the results are wrong, so nothing was timed", file=sys.stderr)
        raise typer.Exit(1)


def _show(report: Report) -> None:
    """Everything but the single measurements, which the JSON has."""
    console = Console(width=max(WIDTH, Console().width))
    model, machine = report.model, report.machine
    print(f"{model['name']}: {model['architecture']}, {model['parameters']:,} parameters, {model['dtype']}, batch {model['batch']}")
    print(", ".join(f"{name} {value}" for name, value in machine.items()))
    print(", ".join(f"{name} {version}" for name, version in report.versions.items()), f"commit {report.commit}", sep=", ")
    tuning = f"; tuning {', '.join(f'{k} {v}' for k, v in report.tuning.items())}" if report.tuning else ""
    print(f"{report.plan}, compiled in {report.compile_s:.1f} s{tuning}")
    if report.tuned:
        print(_said(report.tuned))
    for found in report.contexts:
        print(f"context {found.context}: {found.grade}")
    if not report.passed:
        return
    title = f"us a step: median of {report.repeats}, {report.steps} steps each"
    table = Table(title=title, title_justify="left", box=box.SIMPLE)
    for name in ("context", "what", "median", "min", "max", "tokens/s", "x floor", "x mkc", "GB/s"):
        table.add_column(name, justify="left" if name == "what" else "right", no_wrap=True)
    for found in report.contexts:
        for row in found.rows:
            table.add_row(*_cells(found, row, model["batch"]))
        table.add_section()
    console.print(table)
    for found in report.contexts:
        for row in found.rows:
            if row.skipped:
                print(f"context {found.context}, {row.name}: not measured: {row.skipped}")


def _said(tuned: Tuned) -> str:
    default, found = tuned.medians
    plans = f"{tuned.tried} plans run, {len(tuned.refused)} refused"
    return f"tuned: {found:.1f} us a step, by default {default:.1f}; {'kept' if tuned.taken else 'the default stays'}; {plans}"


def _cells(found: Measured, row: Row, batch: int) -> tuple[str, ...]:
    if not row.us:
        return str(found.context), row.name, "-"
    floor, ours = found.over_floor(row), found.row(OURS)
    low, high = row.spread
    assert ours is not None
    return (
        str(found.context), row.name, *(f"{us:.1f}" for us in (row.median, low, high)),
        "" if row.name == FLOOR else f"{1e6 * batch / row.median:.0f}", f"{floor:.2f}" if floor else "",
        f"{row.median / ours.median:.2f}", f"{found.nbytes / row.median / 1e3:.0f}",
    )  # fmt: skip
