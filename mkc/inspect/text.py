"""Numbers for people: bytes, times and counts with three figures and a unit."""

from collections.abc import Sequence


def size(nbytes: float) -> str:
    """`1.19 GB`, in powers of 1,000."""
    return _scaled(nbytes, ("B", "kB", "MB", "GB", "TB"))


def time(ns: float) -> str:
    """`12.3 us`."""
    return _scaled(ns, ("ns", "us", "ms", "s"))


def count(number: int, thing: str) -> str:
    """`1 task`, `12,000 tasks`."""
    return f"{number:,} {thing}{'' if number == 1 else 's'}"


def table(head: Sequence[str], rows: Sequence[Sequence[str]], indent: str = "  ") -> list[str]:
    """Lines with the first column to the left and the others to the right."""
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    return [
        (
            indent
            + row[0].ljust(widths[0])
            + "".join(f"  {cell:>{w}}" for cell, w in zip(row[1:], widths[1:], strict=True))
        ).rstrip()
        for row in (head, *rows)
    ]


def _scaled(value: float, units: Sequence[str]) -> str:
    for unit in units[:-1]:
        if value < 999.5:
            return f"{_three(value)} {unit}"
        value /= 1000
    return f"{_three(value)} {units[-1]}"


def _three(value: float) -> str:
    """Three significant figures, whole numbers without a point."""
    if value == int(value):
        return f"{int(value)}"
    return f"{value:.{2 if value < 9.995 else 1 if value < 99.95 else 0}f}"
