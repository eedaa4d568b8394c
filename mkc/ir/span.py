"""Which bytes of a storage a box of a tensor touches, and whether two such sets meet: what dependencies are made of."""

from dataclasses import dataclass

import numpy as np

from mkc.ir.combs import Form, distances
from mkc.ir.layout import Layout

Box = tuple[tuple[int, int], ...]  # one half-open interval per dimension


@dataclass(frozen=True, slots=True)
class Span:
    """A set of bytes: runs of `run` bytes from `start`, repeated `count` times every `stride` for each level.

    Levels go from the largest stride to the smallest. `stop` is one past the last byte.
    """

    start: int
    stop: int
    run: int
    levels: tuple[tuple[int, int], ...] = ()  # (stride, count), in bytes

    @property
    def is_dense(self) -> bool:
        return not self.levels

    def covers(self, other: "Span") -> bool:
        """True when every byte of `other` surely lies in this span (only dense spans can tell)."""
        return self.is_dense and self.start <= other.start and other.stop <= self.stop

    @property
    def form(self) -> Form:
        return self.run, self.levels

    def meets(self, other: "Span") -> bool:
        """True when the two spans share a byte. Exact."""
        if self.start >= other.stop or other.start >= self.stop:
            return False
        if self.is_dense and other.is_dense:
            return True
        apart = np.array(other.start - self.start)
        return any(comb.holds(apart) for comb in distances(self.form, other.form))

    def __str__(self) -> str:
        steps = "".join(f" x{count}/{stride}" for stride, count in self.levels)
        return f"[{self.start}:{self.start + self.run}]{steps}"


def span(layout: Layout, box: Box, itemsize: int) -> Span:
    """The bytes that `box` of a tensor laid out as `layout` occupies in its storage."""
    start = layout.offset + sum(lo * s for (lo, _), s in zip(box, layout.strides, strict=True))
    steps = sorted(
        ((s, hi - lo) for (lo, hi), s in zip(box, layout.strides, strict=True) if hi - lo > 1 and s != 0),
        reverse=True,
    )
    run, levels = 1, list[tuple[int, int]]()
    for stride, count in reversed(steps):
        if not levels and stride <= run:
            run = stride * (count - 1) + run
        elif levels and levels[-1][0] * levels[-1][1] == stride:
            levels[-1] = (levels[-1][0], levels[-1][1] * count)
        else:
            levels.append((stride, count))
    levels.reverse()
    reach = run + sum(stride * (count - 1) for stride, count in levels)
    return Span(
        start * itemsize,
        (start + reach) * itemsize,
        run * itemsize,
        tuple((stride * itemsize, count) for stride, count in levels),
    )

