"""Choices: what a plan may do in one way or another. They change how long it takes, and results by no more than roundings."""

from dataclasses import dataclass, fields

from mkc.errors import OptionError

EDGES = ("rows", "heads", "norms")  # between streams; to attention; to and from a norm of its own
COUNTS = {"splits": 32, "merge_from": 33, "one_in": 16, "tasks_each": 16}  # each is at least 1
FINEST, COARSEST = 2.0**-10, 2.0**10  # grains


@dataclass(frozen=True, slots=True)
class Choices:
    """How to plan. Raises OptionError for what no plan can have.

    The first four are of streaming workers, the others of operators that do not stream.
    """

    splits: int = 16  # of the keys of decode attention, at most: whoever merges them reads them all
    merge_from: int = 33  # splits of one sequence's keys: so many are merged once for all, and not by whoever reads them
    one_in: int = 1  # so many workers has a task of a batch's attention
    signalled: tuple[str, ...] = ()  # kinds of edges that are events, though words could be published
    grain: float = 1.0  # what a task must be worth, in what handing it over costs
    tasks_each: int = 1  # that a worker has of an operator, at most

    def __post_init__(self) -> None:
        for name, most in COUNTS.items():
            value = getattr(self, name)
            if type(value) is not int or not 1 <= value <= most:
                raise OptionError(f"Choices({name}={value!r}): it must be a whole number from 1 to {most}")
        if type(self.grain) not in (int, float) or not FINEST <= self.grain <= COARSEST:
            raise OptionError(f"Choices(grain={self.grain!r}): it must be a number from {FINEST:g} to {COARSEST:g}")
        if not isinstance(self.signalled, tuple) or any(kind not in EDGES for kind in self.signalled):
            raise OptionError(f"Choices(signalled={self.signalled!r}): it must be a tuple of some of {', '.join(EDGES)}")

    def __str__(self) -> str:
        """What differs from the default, which is the empty text."""
        changed = [(f.name, getattr(self, f.name)) for f in fields(self) if getattr(self, f.name) != f.default]
        return ", ".join(f"{name} {_said(value)}" for name, value in changed)


def _said(value: object) -> str:
    return " and ".join(map(str, value)) if isinstance(value, tuple) else f"{value:g}"


UNCHOSEN = Choices()  # by anybody: the default
