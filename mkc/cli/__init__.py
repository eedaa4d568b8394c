"""`mkc` on the command line: look at what a model becomes, run it, and see what this machine can do."""

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.console import Console
from rich.markup import escape
from rich.status import Status
from typer.core import TyperGroup

from mkc import __version__
from mkc.cli import findings
from mkc.cli.report import write_report, write_timeline
from mkc.cli.subject import TargetName, Wanted, language_model, subject
from mkc.errors import MkcError
from mkc.inspect.account import Explanation
from mkc.ir.program import Words
from mkc.targets import cuda


class _Spoken(TyperGroup):
    """Errors of mkc are one sentence, not a traceback."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except MkcError as error:
            print(f"mkc: {error}", file=sys.stderr)
            raise typer.Exit(1) from None


app = typer.Typer(
    cls=_Spoken,
    help="A task-graph megakernel compiler: a PyTorch model becomes one persistent kernel.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)

Model = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="A Hugging Face folder or id of a causal language model, or path/to/file.py:factory where "
        "factory() returns (module, example_inputs).",
    ),
]
TargetOption = Annotated[
    TargetName | None, typer.Option("--target", help="Where the kernel is to run.", show_default="cpu")
]
Arch = Annotated[
    str | None,
    typer.Option(help="With --target cuda, a GPU that is not here, such as sm_90a: planned, not run."),
]
Workers = Annotated[
    int | None, typer.Option(min=1, max=1024, help="Workers of the kernel.", show_default="one per CPU or SM")
]
Policy = Annotated[
    Literal["static", "dynamic"],
    typer.Option(help="Who decides which worker runs a task: the plan, or tickets."),
]
Tokens = Annotated[int, typer.Option(min=1, help="How many tokens to generate at most.")]


@app.command()
def inspect(
    model: Model,
    output: Annotated[Path, typer.Option("-o", "--output", file_okay=False, help="The folder to write to.")],
    target: TargetOption = None,
    arch: Arch = None,
    workers: Workers = None,
    policy: Policy = "static",
    prompt: Annotated[
        str | None, typer.Option(help="What a language model is timed on.", show_default="8 tokens")
    ] = None,
    max_new_tokens: Tokens = 8,
) -> None:
    """Write every stage, the generated page, the task graph as a picture, and the timeline of one run."""
    with _progress(f"compiling {model}") as status:
        found = subject(model, Wanted(target, arch, workers, policy, prompt, max_new_tokens))
        status.update("writing every stage")
        written = write_report(found, output)
        if found.trace and found.compilations:
            status.update("running it with time stamps")
            written += write_timeline(found, _fastest(found.trace), output)
    print(f"in {output}:")
    _columns([(f"  {name}", what) for name, what in written])
    if found.untraced:
        print(f"no timeline: {found.untraced}")


@app.command()
def explain(
    model: Model,
    target: TargetOption = None,
    arch: Arch = None,
    workers: Workers = None,
    policy: Policy = "static",
) -> None:
    """Say what a model becomes: operators, tasks, bytes, the memory floor, and what stays in PyTorch."""
    with _progress(f"compiling {model}"):
        found = subject(model, Wanted(target, arch, workers, policy))
    print(Explanation.of(found.compilations, found.fallbacks))


@app.command()
def run(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="A Hugging Face folder or id of a causal language model.")
    ],
    prompt: Annotated[str, typer.Option(help="The text to continue.")],
    max_new_tokens: Annotated[
        int | None,
        typer.Option(min=1, help="How many tokens to generate at most.", show_default="64, or what fits"),
    ] = None,
    target: TargetOption = None,
    workers: Workers = None,
    policy: Policy = "static",
) -> None:
    """Continue a text with a causal language model, greedily, in one launch."""
    if target == "cuda":
        cuda.target()  # raises what is missing
    with _progress(f"compiling {model}") as status:
        lm = language_model(model, target or "cpu", workers=workers, policy=policy)
        status.update("generating")
        most = max_new_tokens or min(64, lm.max_length - len(lm.tokenizer(prompt)["input_ids"]))
        start = time.perf_counter()
        text = lm.generate(prompt, max_new_tokens=most)
        took = time.perf_counter() - start
    print(text)
    if sys.stderr.isatty():
        print(f"{took:.3f} s on {lm.compilation.target}", file=sys.stderr)


@app.command()
def doctor() -> None:
    """Say what is installed and what works here. Fails when the CPU target does not."""
    _columns([("mkc", __version__), *((finding.what, finding.text) for finding in findings.facts())])
    with _progress("trying what works"):
        checks = list(findings.checks())
    print("\nwhat works:")
    _columns([(f"  {'yes' if check.works else 'no '}  {check.what}", check.text) for check in checks])
    if not checks[0].works:
        raise typer.Exit(1)


def main() -> None:
    """The entry point."""
    app(prog_name="mkc")


def _fastest(trace: Callable[[], Words]) -> Words:
    """Of three runs: the first meets cold memory, and others may be using this machine."""
    return min(
        (trace() for _ in range(3)), key=lambda stamps: int(stamps["done"].max() - stamps["taken"].min())
    )


def _progress(doing: str) -> Status:
    """A line on a terminal's stderr that moves while something takes its time."""
    return Console(stderr=True).status(escape(doing))


def _columns(rows: list[tuple[str, str]]) -> None:
    width = max(len(name) for name, _ in rows)
    for name, text in rows:
        print(f"{name.ljust(width)}  {text}".rstrip())
