"""Ranges of task numbers, half open and in order."""

from collections.abc import Iterable

from mkc.ir.tiling import Range

Ranges = tuple[Range, ...]


def merged(ranges: Iterable[Range]) -> Ranges:
    made: list[Range] = []
    for lo, hi in sorted(ranges):
        if made and lo <= made[-1][1]:
            made[-1] = (made[-1][0], max(hi, made[-1][1]))
        else:
            made.append((lo, hi))
    return tuple(made)


def clipped(ranges: Ranges, lo: int, hi: int) -> Ranges:
    return tuple((max(a, lo), min(b, hi)) for a, b in ranges if a < hi and lo < b)


def without(ranges: Ranges, number: int) -> Ranges:
    """All but one."""
    return tuple(r for lo, hi in ranges for r in ((lo, min(hi, number)), (max(lo, number + 1), hi)) if r[0] < r[1])
