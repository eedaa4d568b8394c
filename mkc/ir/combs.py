"""Two forms of spans -> at which distances they share a byte. Distances are sums of progressions, and told as combs."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from math import gcd

import numpy as np
from numpy.typing import NDArray

Level = tuple[int, int]  # stride, count
Form = tuple[int, tuple[Level, ...]]  # what a span is but for where it starts: the length of a run, how it is repeated
Range = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Comb:
    """Runs of `run` numbers from `start`, repeated `count` times every `stride` for each level, from the largest stride on.

    Levels nest: what a level repeats is no longer than its stride. `stop` is one past the last number.
    """

    start: int
    stop: int
    run: int
    levels: tuple[Level, ...]

    def holds(self, numbers: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Of each number, whether it is in the comb."""
        rest = numbers - self.start
        for stride, count in self.levels:
            rest = rest - stride * np.clip(rest // stride, 0, count - 1)
        return np.asarray((rest >= 0) & (rest < self.run))

    def run_beyond(self, number: int) -> Range:
        """The first run that ends beyond `number`, which lies before `stop`."""
        at, rest, reach = self.start, max(number - self.start, 0), self.stop - self.start
        for stride, count in self.levels:
            reach -= stride * (count - 1)
            repeat = min(rest // stride, count - 1)
            if rest - repeat * stride >= reach:
                repeat += 1
            at += repeat * stride
            rest = max(rest - repeat * stride, 0)
        return at, at + self.run


@lru_cache(maxsize=2**14)
def distances(one: Form, other: Form) -> tuple[Comb, ...]:
    """How far behind the one's start the other may start and share a byte with it: in any of these combs, nowhere else."""
    (run, levels), (others_run, others_levels) = one, other
    start = 1 - others_run - sum(stride * (count - 1) for stride, count in others_levels)
    return tuple(_combs(start, run + others_run - 1, (*levels, *others_levels)))


def _combs(start: int, run: int, steps: Iterable[Level]) -> Iterator[Comb]:
    """A run from `start`, repeated for each step, which need not nest."""
    levels: list[Level] = []
    reach, rest = run, sorted((step for step in steps if step[1] > 1), reverse=True)
    while rest:
        stride, count = rest.pop()
        if not levels and stride <= run:
            run = stride * (count - 1) + run
        elif stride >= reach:
            levels.append((stride, count))
        else:
            below = levels.pop()
            for shift, step in _over(below, (stride, count)):
                yield from _combs(start + shift, run, (*levels, *step, *rest))
            return
        reach = stride * (count - 1) + reach
    yield Comb(start, start + reach, run, tuple(reversed(levels)))


def _over(below: Level, above: Level) -> Iterator[tuple[int, tuple[Level, ...]]]:
    """Two levels that do not nest as ones with strides that divide each other: one, or one for each phase of the two."""
    (fine, many), (coarse, count) = below, above
    times, odd = divmod(coarse, fine)
    if not odd:
        yield 0, ((fine, many + times * (count - 1)),)
        return
    phases = fine // gcd(fine, coarse)
    for phase in range(min(phases, count)):
        yield phase * coarse, (below, (coarse * phases, -(-(count - phase) // phases)))
