"""Which bytes of a storage a box of a tensor touches, and whether two such sets meet: what dependencies are made of."""

from dataclasses import dataclass
from itertools import pairwise

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

    def meets(self, other: "Span") -> bool:
        """True when the two spans share a byte. Exact."""
        if self.start >= other.stop or other.start >= self.stop:
            return False
        if self.is_dense and other.is_dense:
            return True
        coarse, fine = (self, other) if _pitch(self) >= _pitch(other) else (other, self)
        if len(coarse.levels) == 1 and fine.levels in ((), coarse.levels):
            return _runs_meet(coarse, fine)
        if _same_frame(coarse, fine):
            return _digits_meet(coarse, fine)
        near = _parts_near(coarse, fine)
        return any(Span(at, at + _reach(coarse), coarse.run, coarse.levels[1:]).meets(fine) for at in near)

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


def _pitch(span: Span) -> int:
    return span.levels[0][0] if span.levels else 0


def _runs_meet(coarse: Span, fine: Span) -> bool:
    """For one level at most: true when some run of `coarse` meets one of `fine`, so many strides further on or back."""
    ((stride, count),) = coarse.levels
    apart = fine.start - coarse.start
    first = max((apart - coarse.run) // stride + 1, 1 - count if fine.levels else 0)
    return first * stride < apart + fine.run and first < count


def _reach(span: Span) -> int:
    """The extent of one repeat of the outermost level."""
    (stride, count), *_ = span.levels
    return span.stop - span.start - stride * (count - 1)


def _parts_near(coarse: Span, fine: Span) -> range:
    """Where the repeats of the outermost level begin whose hull meets `fine`."""
    stride, count = coarse.levels[0]
    first = max(0, -(-(fine.start - _reach(coarse) + 1 - coarse.start) // stride))
    last = min(count - 1, (fine.stop - 1 - coarse.start) // stride)
    return range(coarse.start + first * stride, coarse.start + last * stride + 1, stride)


def _same_frame(a: Span, b: Span) -> bool:
    """True when both have the same strides and those nest, so that positions are digits of one number system."""
    strides = [stride for stride, _ in a.levels]
    if not strides or strides != [stride for stride, _ in b.levels]:
        return False
    nested = all(outer % inner == 0 for outer, inner in pairwise(strides))
    return nested and not (_carries(a) or _carries(b))


def _digits(span: Span) -> list[tuple[int, int]]:
    """Per level, and last for the run, the half-open interval of digits that the span takes."""
    digits, rest = [], span.start
    for stride, count in span.levels:
        at, rest = divmod(rest, stride)
        digits.append((at, at + count))
    return [*digits, (rest, rest + span.run)]


def _carries(span: Span) -> bool:
    """True when some digit would pass its base, so that intervals of digits do not describe the span."""
    strides = [stride for stride, _ in span.levels]
    bases = [*(outer // inner for outer, inner in pairwise(strides)), strides[-1]]
    return any(stop > base for (_, stop), base in zip(_digits(span)[1:], bases, strict=True))


def _digits_meet(a: Span, b: Span) -> bool:
    return all(lo < stop and at < hi for (lo, hi), (at, stop) in zip(_digits(a), _digits(b), strict=True))
