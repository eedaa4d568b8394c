"""How long a step takes in one way or another -> the way with the shortest. One setting after another, the others held."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from mkc.ir.choices import EDGES, UNCHOSEN

PACES = (0, 70, 80, 88, 95, 100)
DELAYS = (0, 700, 1000, 1400, 1800, 2200)
WINDOWS = (2, 3, 4, 6)
GRAINS = (0.25, 0.5, 1.0, 2.0, 4.0, 16.0, 64.0)
ROUNDS = 2
NOISE = 0.01  # of a step's time, which is no reason to take another plan
Settings = Mapping[str, Sequence[Any]]
Way = TypeVar("Way", bound=Any)  # a frozen dataclass with the settings as fields


def search(start: Way, settings: Settings, measure: Callable[[Way], float | None], gain: float = 0.0) -> Way:
    """The best found; `measure` gives seconds, or None when there is no time left for more. What is no better by `gain`
    than the best so far is as good as equal, and not taken."""
    best, shortest = start, measure(start)
    for _ in range(ROUNDS):
        before = best
        for name, values in settings.items():
            for tried in [replace(best, **{name: value}) for value in values]:
                if tried == best:
                    continue
                took = measure(tried)
                if took is None or shortest is None:
                    return best
                if took < shortest * (1 - gain):
                    best, shortest = tried, took
        if best == before:
            break
    return best


def pacing(ring_slots: int, paced: bool = True) -> Settings:
    """What may make a difference to a kernel of streaming workers, of `Tuning`."""
    if not paced:
        return {"delay": DELAYS}
    return {"pace": PACES, "delay": DELAYS, "window": (*(w for w in WINDOWS if w < ring_slots), ring_slots)}


def planning(streams: bool, batch: int) -> Settings:
    """What may make a difference to a plan, of `Choices`: few values, for each is a compilation."""
    if not streams:
        return {"grain": GRAINS, "tasks_each": (1, 2, 4)}
    apart = {"one_in": (1, 2, 4)} if batch > 1 else {"merge_from": (2, UNCHOSEN.merge_from)}
    return {"splits": (1, 2, 4, 8, 16, 32), **apart, "signalled": ((), *((kind,) for kind in EDGES), EDGES)}
