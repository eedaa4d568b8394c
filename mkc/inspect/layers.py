"""Edges -> places. A layered drawing after Sugiyama: rows by longest way, few crossings, straight lines, several columns.

Every edge goes down. What is needed many rows further down runs there as one *thread* that all its readers share,
so a table read in every layer of a model is one line at the side and not a fan. (Sugiyama, Tagawa and Toda, 1981;
places along a row are the least-squares ones under a minimal distance, by pooling adjacent violators.)
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import ceil, sqrt
from statistics import fmean

Spot = tuple[int, int]  # (node, row): the node itself in its own row, its thread in those below
Edge = tuple[int, int]

SWEEPS = 21


@dataclass(frozen=True, slots=True)
class Drawing:
    """Where the middle of every spot is, in points, and which spots a line joins. Rows are counted over all columns."""

    places: dict[Spot, tuple[float, float]]
    joins: tuple[tuple[Spot, Spot], ...]
    rows: tuple[int, ...]  # of each node
    tall: int  # rows in a column
    width: float
    height: float

    def column(self, spot: Spot) -> int:
        return spot[1] // self.tall


@dataclass(frozen=True, slots=True)
class Sizes:
    """Of a node's box and the room around it, in points."""

    width: float = 208
    height: float = 38
    gap: float = 18  # between boxes of a row
    thread: float = 12  # between a thread and its neighbour
    row: float = 66  # from one row to the next
    gutter: float = 56  # between columns


def draw(count: int, edges: Iterable[Edge], sizes: Sizes | None = None) -> Drawing:
    """Places for nodes 0 to count - 1, every edge from a lower number to a higher one."""
    sizes = sizes or Sizes()
    edges = sorted(set(edges))
    rows = _rows(count, edges)
    joins = _threads(rows, edges)
    order = _ordered(rows, joins)
    tall = _tall(order, rows, sizes)
    return _placed(order, joins, rows, tall, sizes)


def _rows(count: int, edges: Sequence[Edge]) -> tuple[int, ...]:
    """Below everything it comes after; what comes after nothing stands right above its first reader."""
    rows = [0] * count
    for before, after in edges:  # sorted, so that `before` is settled
        rows[after] = max(rows[after], rows[before] + 1)
    readers, has_producer = defaultdict(list), {after for _, after in edges}
    for before, after in edges:
        readers[before].append(rows[after])
    for node in range(count):
        if node not in has_producer and readers[node]:
            rows[node] = min(readers[node]) - 1
    return tuple(rows)


def _threads(rows: Sequence[int], edges: Sequence[Edge]) -> tuple[tuple[Spot, Spot], ...]:
    """Edges as steps of one row each; those that leave a node together go together."""
    joins: dict[tuple[Spot, Spot], None] = {}
    for before, after in edges:
        spots = [(before, row) for row in range(rows[before], rows[after])] + [(after, rows[after])]
        joins.update(dict.fromkeys(pairwise(spots)))
    return tuple(joins)


def _neighbours(joins: Iterable[tuple[Spot, Spot]]) -> tuple[dict[Spot, list[Spot]], dict[Spot, list[Spot]]]:
    above: dict[Spot, list[Spot]] = defaultdict(list)
    below: dict[Spot, list[Spot]] = defaultdict(list)
    for upper, lower in joins:
        above[lower].append(upper)
        below[upper].append(lower)
    return above, below


def _ordered(rows: Sequence[int], joins: Sequence[tuple[Spot, Spot]]) -> list[list[Spot]]:
    """The spots of each row from left to right: everyone near the middle of its neighbours, swept down and up."""
    spots = dict.fromkeys(
        [*((node, row) for node, row in enumerate(rows)), *(s for join in joins for s in join)]
    )
    order: list[list[Spot]] = [[] for _ in range(max(rows, default=-1) + 1)]
    for spot in spots:
        order[spot[1]].append(spot)
    above, below = _neighbours(joins)
    best, fewest = [*order], _crossings(order, below)
    for sweep in range(12):
        near, walk = (above, order) if sweep % 2 == 0 else (below, order[::-1])
        at = {spot: i / len(row) for row in order for i, spot in enumerate(row)}
        for row in walk:
            row.sort(key=lambda s: fmean(at[n] for n in near[s]) if near[s] else at[s])
            at.update({spot: (i + 0.5) / len(row) for i, spot in enumerate(row)})
        crossings = _crossings(order, below)
        if crossings < fewest:
            best, fewest = [[*row] for row in order], crossings
    return best


def _crossings(order: Sequence[Sequence[Spot]], below: dict[Spot, list[Spot]]) -> int:
    total = 0
    for upper, lower in pairwise(order):
        at = {spot: i for i, spot in enumerate(lower)}
        ends = [at[n] for spot in upper for n in sorted(below[spot], key=at.__getitem__)]
        total += sum(a > b for i, a in enumerate(ends) for b in ends[i + 1 :])
    return total


def _tall(order: Sequence[Sequence[Spot]], rows: Sequence[int], sizes: Sizes) -> int:
    """Rows in a column: all of them, or so many that the whole has about the shape of a screen."""
    if len(order) <= 20:
        return max(1, len(order))
    width = max(sum(_breadth(spot, rows, sizes) for spot in row) for row in order) + sizes.gutter
    columns = max(1, round(sqrt(1.6 * len(order) * sizes.row / width)))
    return ceil(len(order) / columns)


def _breadth(spot: Spot, rows: Sequence[int], sizes: Sizes) -> float:
    return sizes.width + sizes.gap if _is_box(spot, rows) else sizes.thread


def _is_box(spot: Spot, rows: Sequence[int]) -> bool:
    """Otherwise it is a thread."""
    return spot[1] == rows[spot[0]]


def _placed(
    order: Sequence[Sequence[Spot]],
    joins: tuple[tuple[Spot, Spot], ...],
    rows: tuple[int, ...],
    tall: int,
    sizes: Sizes,
) -> Drawing:
    """Columns side by side, each as wide as its widest row."""
    places: dict[Spot, tuple[float, float]] = {}
    left = sizes.gutter / 2
    for first in range(0, len(order), tall):
        column = order[first : first + tall]
        across = _across(column, joins, rows, sizes)
        edges = [(x - b, x + b) for s, x in across.items() for b in (_breadth(s, rows, sizes) / 2,)]
        shift = left - min(lo for lo, _ in edges)
        for spot, x in across.items():
            places[spot] = (x + shift, (spot[1] - first + 0.5) * sizes.row)
        left += max(hi for _, hi in edges) - min(lo for lo, _ in edges) + sizes.gutter
    return Drawing(places, joins, rows, tall, left - sizes.gutter / 2, min(tall, len(order)) * sizes.row)


def _across(
    column: Sequence[Sequence[Spot]], joins: Sequence[tuple[Spot, Spot]], rows: Sequence[int], sizes: Sizes
) -> dict[Spot, float]:
    """x of every spot of a column: as near to its neighbours as order and distances allow, in a few sweeps."""
    here = {spot for row in column for spot in row}
    above, below = _neighbours([join for join in joins if here.issuperset(join)])
    x = dict.fromkeys(here, 0.0)
    for sweep in range(SWEEPS):
        down = sweep % 2 == 0  # the last one is, which leaves chains straight
        for row in column if down else reversed(column):
            near = [_ends((above if down else below)[spot], rows, here) for spot in row]
            wanted = [fmean(x[n] for n in ends) if ends else x[s] for s, ends in zip(row, near, strict=True)]
            weights = [1.0 if _is_box(s, rows) else 0.01 for s in row]  # threads go around boxes
            breadths = [_breadth(s, rows, sizes) for s in row]
            x.update(zip(row, _apart(wanted, weights, breadths), strict=True))
    return x


def _ends(neighbours: Sequence[Spot], rows: Sequence[int], here: set[Spot]) -> list[Spot]:
    """What a spot should stand by: the boxes its threads come from, wherever the threads themselves had to go."""
    sources = [(node, rows[node]) for node, _ in neighbours]
    return [source if source in here else spot for source, spot in zip(sources, neighbours, strict=True)]


def _apart(wanted: Sequence[float], weights: Sequence[float], breadths: Sequence[float]) -> list[float]:
    """Places nearest to the wanted ones, by weighted squares, that keep order and leave each its breadth."""
    shifts = [0.0]
    for a, b in pairwise(breadths):
        shifts.append(shifts[-1] + (a + b) / 2)
    pools: list[tuple[float, float, int]] = []  # (place, weight, members), places increasing
    for want, heavy, shift in zip(wanted, weights, shifts, strict=True):
        place, weight, members = want - shift, heavy, 1
        while pools and pools[-1][0] >= place:
            other, weighs, many = pools.pop()
            place = (place * weight + other * weighs) / (weight + weighs)
            weight, members = weight + weighs, members + many
        pools.append((place, weight, members))
    places = [place for place, _, members in pools for _ in range(members)]
    return [place + shift for place, shift in zip(places, shifts, strict=True)]
