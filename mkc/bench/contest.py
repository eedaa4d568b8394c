"""Variants -> Comparison. A process for each build, compiled all at once; then they take turns, one at a time, round after round."""

import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import numpy as np
import torch

from mkc.bench.children import Child, Children, Lost
from mkc.bench.circumstances import commit, machine, versions
from mkc.bench.comparison import Comparison, Found, Outcome, Turn, first_difference, ratio
from mkc.bench.phases import Labels, phases, spreads, table
from mkc.bench.run import Wanted
from mkc.bench.tune import GRADED, Say
from mkc.bench.variants import BENCH, Build, Variant, unpack

RUNS = 3  # of a turn, after one that does not count
STAMPED = 8  # steps at most
STAMPS = ("names", "headers", "bodies", "stamps")  # arrays of a child's file
BUILDING = 0.6  # of the time at most, so that one that never ends leaves some to the others
PATIENCE = 120.0  # seconds with what was begun: a kernel that hangs says so long before


def compare(
    wanted: Wanted, variants: Sequence[Variant], grading: bool = False, stamping: bool = False, say: Say = lambda doing: None
) -> Comparison:
    """`wanted.repeats` are rounds. Raises OptionError for trees and constants that are not there; else what fails is an outcome."""
    start = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="mkc-compare-") as name, Children() as children:
        folder = Path(name)
        commits = _begin(wanted, variants, grading, stamping, folder, children)
        contenders = [_Contender(variant, children[variant.build], commits[variant.build]) for variant in variants]
        contest = _Contest(wanted, contenders, start + wanted.seconds, say)
        contest.build(start + BUILDING * wanted.seconds)
        if grading:
            contest.grade()
        contest.take_turns()
        if stamping:
            contest.stamp(folder / "stamps.npz")
        outcomes = tuple(contest.outcome(contender) for contender in contenders)
    return Comparison(
        wanted.model, wanted.batch, machine(torch.device(wanted.device)), versions(), commit(BENCH), wanted.command, wanted.steps,
        wanted.repeats, outcomes, contest.skipped,
    )  # fmt: skip


def _begin(
    wanted: Wanted, variants: Sequence[Variant], grading: bool, stamping: bool, folder: Path, children: Children
) -> dict[Build, str | None]:
    """All trees are looked at before anything is begun. Gives their commits."""
    trees = {build: folder / f"tree{n}" for n, build in enumerate(dict.fromkeys(v.build for v in variants))}
    commits = {build: unpack(build, tree) for build, tree in trees.items()}
    for build, tree in trees.items():
        subject = {
            "model": wanted.model, "device": wanted.device, "dtype": wanted.dtype, "batch": wanted.batch, "room": wanted.room,
            "workers": wanted.workers, "choices": dict(build.choices), "grading": grading, "stamping": stamping,
        }  # fmt: skip
        children[build] = Child(tree, tree.with_suffix(".stderr"), subject)
    return commits


@dataclass(slots=True)
class _Contender:
    """A variant, and what is known of it so far. What it fails at is the end of it, and not of the others."""

    variant: Variant
    child: Child
    commit: str | None
    built: dict[str, Any] = field(default_factory=dict)
    failed: str = ""
    said: str = ""
    turns: dict[int, list[Turn]] = field(default_factory=dict)
    differs: dict[int, int] = field(default_factory=dict)
    grades: dict[int, dict[str, Any]] = field(default_factory=dict)
    accounts: dict[int, str] = field(default_factory=dict)

    @contextmanager
    def trying(self) -> Iterator[None]:
        try:
            yield
        except Lost as reason:
            self.failed, self.said = str(reason), reason.said

    def ask(self, do: str, **given: Any) -> dict[str, Any]:
        return self.child.ask(time.monotonic() + PATIENCE, do, tuning=dict(self.variant.tuning), **given)


@dataclass(slots=True)
class _Contest:
    """All of them, until the clock says `end`."""

    wanted: Wanted
    contenders: Sequence[_Contender]
    end: float
    say: Say
    tokens: dict[int, list[list[int]]] = field(default_factory=dict)  # of the first variant, by context
    skipped: str = ""  # what there was no time for

    def build(self, end: float) -> None:
        """They do so at the same time; here one after another is waited for."""
        answers: dict[Build, _Contender] = {}
        for contender in self.contenders:
            first = answers.setdefault(contender.variant.build, contender)
            if first is contender:
                self.say(f"building; waiting for {contender.variant.name}")
                with contender.trying():
                    contender.built = contender.child.answer(end)
            contender.built, contender.failed, contender.said = first.built, first.failed, first.said

    def grade(self) -> None:
        for context in self.wanted.contexts:
            for contender in self._living():
                if self._late(f"grading at context {context}"):
                    return
                self.say(f"context {context}: grading {contender.variant.name} against float64")
                with contender.trying():
                    steps = min(GRADED, self.wanted.steps)
                    contender.grades[context] = contender.ask("grade", context=context, steps=steps)

    def take_turns(self) -> None:
        """Forwards and backwards, so that nobody always comes after the same one."""
        rounds = self.wanted.repeats
        for number in range(rounds):
            for context in self.wanted.contexts:
                for contender in self._living()[:: -1 if number % 2 else 1]:
                    if self._late(f"rounds {number + 1} to {rounds}"):
                        return
                    self.say(f"round {number + 1} of {rounds}, context {context}: {contender.variant.name}")
                    with contender.trying():
                        self._turn(contender, context)

    def _turn(self, contender: _Contender, context: int) -> None:
        answer = contender.ask("time", context=context, steps=self.wanted.steps, count=RUNS)
        contender.turns.setdefault(context, []).append(tuple(answer["us"]))
        if contender is self.contenders[0]:
            self.tokens.setdefault(context, answer["tokens"])
        step = first_difference(answer["tokens"], self.tokens.get(context, answer["tokens"]))
        if step is not None:
            contender.differs[context] = min(step, contender.differs.get(context, step))

    def stamp(self, file: Path) -> None:
        for context in self.wanted.contexts:
            for contender in self._living():
                if self._late(f"stamps of context {context}"):
                    return
                self.say(f"context {context}: {contender.variant.name} with time stamps")
                with contender.trying():
                    contender.ask("stamp", context=context, steps=min(STAMPED, self.wanted.steps), file=str(file))
                    contender.accounts[context] = _account(file)

    def _living(self) -> list[_Contender]:
        return [contender for contender in self.contenders if not contender.failed]

    def _late(self, what: str) -> bool:
        late = time.monotonic() > self.end
        if late and not self.skipped:
            self.skipped = f"the budget of {self.wanted.seconds:g} s was spent before {what}"
        return late

    def outcome(self, contender: _Contender) -> Outcome:
        c, contexts = contender, {context: self._found(contender, context) for context in self.wanted.contexts}
        return Outcome(c.variant, c.commit, c.built, contexts, c.accounts, c.failed, c.said)

    def _found(self, contender: _Contender, context: int) -> Found:
        first, turns = self.contenders[0], contender.turns.get(context, [])
        compared = bool(turns) and context in self.tokens
        to_first = None if contender is first else ratio(turns, first.turns.get(context, []))
        return Found(tuple(turns), to_first, compared, contender.differs.get(context), contender.grades.get(context))


def _account(file: Path) -> str:
    """Of what a child has stamped."""
    with ZipFile(file) as archive:
        held = {name: np.lib.format.read_array(archive.open(f"{name}.npy"), allow_pickle=False) for name in STAMPS}
    labels = Labels.made(held["names"].tolist(), held["headers"].tolist(), held["bodies"].tolist())
    found = phases(held["stamps"], labels)
    return f"{table(found)}\n{spreads(found)}"
