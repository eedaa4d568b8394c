"""What a run has found, as data: figures, grades, the machine. JSON comes from here, the table from mkc/cli/bench.py."""

import statistics
from dataclasses import asdict, dataclass
from typing import Any

OURS, FLOOR = "mkc", "plain read"
SCHEMA = 1


@dataclass(frozen=True, slots=True)
class Row:
    """One way to decode from one context: microseconds a step, of each repetition, or why there are none."""

    name: str
    us: tuple[float, ...] = ()
    setup_s: float = 0.0  # compiling it and its first runs
    skipped: str = ""

    @property
    def median(self) -> float:
        return statistics.median(self.us)

    @property
    def spread(self) -> tuple[float, float]:
        """The shortest and the longest."""
        return min(self.us), max(self.us)


@dataclass(frozen=True, slots=True)
class Measured:
    """All that was found for one context. `grade` is of mkc.numerics; the floor is a row."""

    context: int  # tokens in the caches when the steps begin
    nbytes: int  # that a step has to read
    grade: Any
    rows: tuple[Row, ...] = ()

    def row(self, name: str) -> Row | None:
        found = [row for row in self.rows if row.name == name and row.us]
        return found[0] if found else None

    def over_floor(self, row: Row) -> float | None:
        floor = self.row(FLOOR)
        return row.median / floor.median if floor and row.us else None

    def json(self) -> dict[str, Any]:
        grade = asdict(self.grade) | {"passed": self.grade.passed}
        rows = [self._row_json(row) for row in self.rows]
        return {"context": self.context, "step_bytes": self.nbytes, "grade": grade, "rows": rows}

    def _row_json(self, row: Row) -> dict[str, Any]:
        if not row.us:
            return {"name": row.name, "skipped": row.skipped}
        low, high = row.spread
        return {
            "name": row.name, "median_us": row.median, "min_us": low, "max_us": high, "us": list(row.us),
            "over_floor": self.over_floor(row), "setup_s": row.setup_s,
        }  # fmt: skip


@dataclass(frozen=True, slots=True)
class Tuned:
    """What a search has found: microseconds a step with the default plan and with the found one, taken in turn."""

    machine: str  # under whose name it is kept
    costs: dict[str, float]  # that were measured of it
    taken: bool  # whether the found one was shorter; else the default is kept
    default_us: tuple[float, ...]
    found_us: tuple[float, ...]
    tried: int  # plans that were run
    refused: tuple[str, ...]  # plans that were wrong or could not be built, and why

    @property
    def medians(self) -> tuple[float, float]:
        """Of the default, and of what was found."""
        return statistics.median(self.default_us), statistics.median(self.found_us)

    def json(self) -> dict[str, Any]:
        default, found = self.medians
        return asdict(self) | {"default_median_us": default, "found_median_us": found}


@dataclass(frozen=True, slots=True)
class Report:
    """A whole run."""

    model: dict[str, Any]
    machine: dict[str, Any]
    versions: dict[str, str]
    commit: str | None
    command: tuple[str, ...]
    steps: int
    repeats: int
    compile_s: float  # from the model to a kernel that is loaded
    plan: str
    tuning: dict[str, int] | None
    choices: dict[str, Any]  # how it was planned, and the costs that was decided by
    tuned: Tuned | None
    contexts: tuple[Measured, ...]

    @property
    def passed(self) -> bool:
        """Whether every context's logits and tokens are as near to float64 as eager's."""
        return all(measured.grade.passed for measured in self.contexts)

    def json(self) -> dict[str, Any]:
        plain = {name: getattr(self, name) for name in self.__dataclass_fields__ if name not in ("contexts", "tuned")}
        tuned, contexts = self.tuned and self.tuned.json(), [found.json() for found in self.contexts]
        return {"schema": SCHEMA, "passed": self.passed, **plain, "tuned": tuned, "contexts": contexts}
