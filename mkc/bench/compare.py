"""Variants -> a table: `python -m mkc.bench.compare --variant base=HEAD~3 --variant "fast=.:delay=1000" --context 128`.

What a variant is stands in mkc/bench/variants.py, how they are compared in mkc/bench/contest.py.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from mkc.bench.comparison import Comparison, Found, Outcome
from mkc.bench.contest import RUNS, compare
from mkc.bench.run import Wanted
from mkc.bench.variants import SYNTAX, Variant, all_different, parsed, read
from mkc.errors import MkcError, OptionError

SAID = 60  # letters of an error in the table; all of it stands below
WIDTH = 150  # of the table, also where the terminal is narrower or there is none


def main(arguments: Sequence[str] | None = None) -> None:
    given = _parser().parse_args(arguments)
    try:
        found = _compared(given)
    except MkcError as error:
        sys.exit(f"mkc: {error}")
    if given.json:
        given.json.write_text(json.dumps(found.json(), indent=1) + "\n")
    _show(found)
    if not found.passed:
        sys.exit("mkc: not all variants ran and told the right tokens")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m mkc.bench.compare", description=f"Variants of the compiler, timed in turn.\n\n{SYNTAX}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--variant", action="append", default=[], metavar="NAME=TREE[:SETTING=VALUE,...]", help="can be repeated")
    parser.add_argument("--variants", type=Path, metavar="FILE", help="of TOML, whose variants come before those of --variant")
    parser.add_argument("--model", default="qwen3-0.6b", help="a configuration of `mkc bench`, or a Hugging Face folder or id")
    parser.add_argument("--context", type=_count, action="append", help="tokens in the caches (default: 128); can be repeated")
    parser.add_argument("--batch", type=_count, default=1, help="sequences at a time, all at the same context (default: 1)")
    parser.add_argument("--steps", type=_count, default=32, help="tokens of one measurement (default: 32)")
    parser.add_argument("--rounds", type=_count, default=9, help=f"turns of each variant, each of {RUNS} measurements (default: 9)")
    parser.add_argument("--dtype", choices=("bfloat16", "float16", "float32"), help="of the weights (default: as `mkc bench`)")
    parser.add_argument("--target", choices=("cpu", "cuda"), help="where to measure (default: cuda if there is a GPU)")
    parser.add_argument("--workers", type=_count, help="of the kernels (default: one per CPU or SM)")
    parser.add_argument("--grade", action="store_true", help="grade each variant at each context against float64, before any turn")
    parser.add_argument("--stamps", action="store_true", help="print where the time of each goes, as mkc.bench.phases does")
    parser.add_argument("--seconds", type=float, default=600.0, help="begin nothing later than this (default: 600)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="for all that was found")
    return parser


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} must be a whole number from 1")
    return int(text)


def _compared(given: argparse.Namespace) -> Comparison:
    variants = _variants(given)
    if given.json and not given.json.absolute().parent.is_dir():
        raise OptionError(f"there is no folder {given.json.absolute().parent} to write {given.json.name} to")
    device = given.target or ("cuda" if torch.cuda.is_available() else "cpu")
    wanted = Wanted(
        given.model, device, tuple(given.context or (128,)), given.steps, given.rounds, "none", given.dtype, given.workers,
        seconds=given.seconds, command=tuple(sys.orig_argv), batch=given.batch,
    )  # fmt: skip
    with Console(stderr=True).status("unpacking") as status:
        return compare(wanted, variants, given.grade, given.stamps, lambda doing: status.update(escape(doing)))


def _variants(given: argparse.Namespace) -> list[Variant]:
    found = [*(read(given.variants) if given.variants else ()), *map(parsed, given.variant)]
    if not found:
        raise OptionError("there is nothing to compare; give --variant NAME=TREE, the first of which is what others are compared with")
    all_different(found)
    return found


# ---- what was found


def _show(found: Comparison) -> None:
    """Everything but the single turns, which the JSON has."""
    print(f"{found.model}, batch {found.batch}: " + ", ".join(f"{name} {value}" for name, value in found.machine.items()))
    print(", ".join(f"{name} {version}" for name, version in found.versions.items()))
    for outcome in found.outcomes:
        print(_described(outcome))
    Console(width=max(WIDTH, Console().width)).print(_table(found))
    if found.skipped:
        print(found.skipped)
    for outcome in found.outcomes:
        for context, grade in ((context, at.grade) for context, at in outcome.contexts.items() if at.grade):
            print(f"context {context}, {outcome.variant.name}: {grade['said']}")
    for outcome in found.outcomes:
        for context, account in outcome.accounts.items():
            print(f"\ncontext {context}, {outcome.variant.name}, us\n{account}")
    for outcome in found.outcomes:
        if outcome.failed:
            print(f"\n{outcome.variant.name} FAILED: {outcome.failed}\nthe end of its stderr:\n{outcome.said}")


def _described(outcome: Outcome) -> str:
    built, at = outcome.built, f" at {outcome.commit[:10]}{'+' * outcome.commit.endswith('+')}" if outcome.commit else ""
    if not built:
        return f"{outcome.variant.name}: {outcome.variant}{at}"
    tuning = ", ".join(f"{name} {value}" for name, value in (built["tuning"] or {}).items())
    took = f"{built['dtype']}, compiled in {built['compile_s']:.1f} s"
    return f"{outcome.variant.name}: {outcome.variant}{at}; {built['plan']}, {took}{tuning and f'; of itself {tuning}'}"


def _table(found: Comparison) -> Table:
    title = f"us a step: {found.rounds} rounds of {RUNS} measurements of {found.steps} steps"
    made = Table(title=title, title_justify="left", box=box.SIMPLE)
    first = found.outcomes[0].variant.name
    for name in ("context", "variant", "median", "min", "max", f"x {first}", "interval", "tokens"):
        made.add_column(name, justify="left" if name in ("variant", "tokens") else "right", no_wrap=True)
    for context in found.outcomes[0].contexts:
        for outcome in found.outcomes:
            made.add_row(str(context), escape(outcome.variant.name), *map(escape, _cells(outcome, outcome.contexts[context])))
        made.add_section()
    return made


def _cells(outcome: Outcome, at: Found) -> tuple[str, ...]:
    failed = f"FAILED: {outcome.failed}"[:SAID] if outcome.failed else ""
    said = ", ".join(filter(None, (_tokens(at), _grade(at), failed)))
    if not at.turns:
        return "-", "-", "-", "-", "-", said
    row = at.row(outcome.variant.name)
    figures = f"{row.median:.1f}", f"{row.spread[0]:.1f}", f"{row.spread[1]:.1f}"
    if at.ratio is None:
        return *figures, "-", "-", said
    return *figures, f"{at.ratio.median:.3f}", f"{at.ratio.low:.3f} to {at.ratio.high:.3f}", said


def _tokens(at: Found) -> str:
    if not at.turns:
        return ""
    if not at.compared:
        return "compared with none"
    return "the same" if at.differs is None else f"OTHER TOKENS FROM STEP {at.differs} ON"


def _grade(at: Found) -> str:
    return "" if not at.grade else "graded right" if at.grade["passed"] else "GRADED WRONG"


if __name__ == "__main__":
    main()
