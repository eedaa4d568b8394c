"""How long a step takes with a tuning -> the tuning with the shortest. One setting after another, the others held."""

from collections.abc import Callable, Sequence
from dataclasses import replace

from mkc.targets.kernel import Tuning

PACES = (0, *range(600, 1201, 100))
DELAYS = (0, 700, 1000, 1400, 1800, 2200)
WINDOWS = (2, 3, 4, 6)
ROUNDS = 2


def search(start: Tuning, ring_slots: int, measure: Callable[[Tuning], float | None], paced: bool = True) -> Tuning:
    """The best found; `measure` gives seconds, or None when there is no time left for more."""
    best, shortest = start, measure(start)
    for _ in range(ROUNDS):
        before = best
        for name, values in _settings(ring_slots, paced).items():
            for tried in [replace(best, **{name: value}) for value in values]:
                if tried == best:
                    continue
                took = measure(tried)
                if took is None or shortest is None:
                    return best
                if took < shortest:
                    best, shortest = tried, took
        if best == before:
            break
    return best


def _settings(ring_slots: int, paced: bool) -> dict[str, Sequence[int]]:
    """What may make a difference, and its values."""
    if not paced:
        return {"delay": DELAYS}
    return {"pace": PACES, "delay": DELAYS, "window": (*(w for w in WINDOWS if w < ring_slots), ring_slots)}
