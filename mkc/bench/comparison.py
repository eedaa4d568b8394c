"""What a comparison has found, as data: the turns of each variant beside those of the first. JSON and the table come from here."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mkc.bench.results import Row
from mkc.bench.variants import Variant

SCHEMA = 1
DOUBT = 0.05  # that an interval does not hold the median
Turn = tuple[float, ...]  # microseconds a step of the runs of one turn


@dataclass(frozen=True, slots=True)
class Ratio:
    """Of two variants' times: the median over rounds, and between which two of the rounds it lies."""

    median: float
    low: float
    high: float


def ratio(turns: Sequence[Turn], reference: Sequence[Turn]) -> Ratio | None:
    """Paired: each turn's median over that of the reference in the same round, so that what drifts from round to round falls out.

    The interval is that of the sign test: it holds the true median in 19 of 20 cases, whatever times are distributed like. With fewer
    than six rounds there is none so sure, and it is from the least to the most.
    """
    found = sorted(statistics.median(mine) / statistics.median(theirs) for mine, theirs in zip(turns, reference, strict=False))
    if not found:
        return None
    left_out = _left_out(len(found))
    return Ratio(statistics.median(found), found[left_out], found[-1 - left_out])


def _left_out(count: int) -> int:
    """Of so many sorted figures, how many at each end the interval needs not reach."""
    outside = [2 * sum(math.comb(count, i) for i in range(ends + 1)) / 2**count for ends in range(count // 2)]
    return sum(doubt <= DOUBT for doubt in outside[1:]) if outside and outside[0] <= DOUBT else 0


def first_difference(tokens: Sequence[Sequence[int]], others: Sequence[Sequence[int]]) -> int | None:
    """The first step, from 0, whose token is another in any sequence of the batch."""
    pairs = [zip(mine, theirs, strict=True) for mine, theirs in zip(tokens, others, strict=True)]
    found = [step for row in pairs for step, (mine, theirs) in enumerate(row) if mine != theirs]
    return min(found, default=None)


@dataclass(frozen=True, slots=True)
class Found:
    """A variant at one context."""

    turns: tuple[Turn, ...] = ()
    ratio: Ratio | None = None  # to the first variant
    compared: bool = False  # whether its tokens were
    differs: int | None = None  # the first step with another token than the first variant's
    grade: dict[str, Any] | None = None  # passed, said: beside float64

    def row(self, name: str) -> Row:
        return Row(name, tuple(us for turn in self.turns for us in turn))

    @property
    def right(self) -> bool:
        """A grade counts for more than equal tokens: other roundings may tell others where two are nearly as good."""
        return bool(self.grade["passed"]) if self.grade else self.differs is None

    def json(self) -> dict[str, Any]:
        row = self.row("")
        figures = {"median_us": row.median, "min_us": row.spread[0], "max_us": row.spread[1]} if row.us else {}
        interval = [self.ratio.low, self.ratio.high] if self.ratio else None
        return figures | {
            "turns_us": self.turns, "tokens_compared": self.compared, "ratio": self.ratio and self.ratio.median,
            "interval": interval, "other_tokens_from": self.differs, "grade": self.grade,
        }  # fmt: skip


@dataclass(frozen=True, slots=True)
class Outcome:
    """A variant. Where it failed, `failed` is one line and `said` the end of its stderr."""

    variant: Variant
    commit: str | None
    built: dict[str, Any]  # plan, dtype, compile_s, choices, tuning
    contexts: dict[int, Found]
    accounts: dict[int, str]  # of phases, as text
    failed: str = ""
    said: str = ""

    @property
    def right(self) -> bool:
        return not self.failed and all(found.right for found in self.contexts.values())

    def json(self) -> dict[str, Any]:
        contexts = [{"context": context, **found.json()} for context, found in self.contexts.items()]
        accounts = [{"context": context, "phases": text.splitlines()} for context, text in self.accounts.items()]
        return self.variant.json() | {
            "commit": self.commit, "built": self.built, "failed": self.failed, "stderr": self.said.splitlines(),
            "contexts": contexts, "accounts": accounts,
        }  # fmt: skip


@dataclass(frozen=True, slots=True)
class Comparison:
    """Of variants, of which the first is what the others are compared with."""

    model: str
    batch: int
    machine: dict[str, Any]
    versions: dict[str, str]
    commit: str | None  # of what compared them
    command: tuple[str, ...]
    steps: int
    rounds: int  # that were to be; time may have been up before
    outcomes: tuple[Outcome, ...]
    skipped: str  # what there was no time for

    @property
    def passed(self) -> bool:
        """Whether all ran, and told what they should."""
        return all(outcome.right for outcome in self.outcomes)

    def json(self) -> dict[str, Any]:
        plain = {name: getattr(self, name) for name in self.__dataclass_fields__ if name != "outcomes"}
        return {"schema": SCHEMA, "passed": self.passed, **plain, "variants": [outcome.json() for outcome in self.outcomes]}
