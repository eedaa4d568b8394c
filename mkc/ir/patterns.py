"""Which bytes the tasks of a part touch through one operand, and which tasks of two such patterns share a byte.

A pattern is told from where its tensor lies, so that the layers of a model share patterns, and what is known of them.
"""

from dataclasses import dataclass
from functools import cached_property
from itertools import product

import numpy as np
from numpy.typing import NDArray

from mkc.ir.combs import Form, distances
from mkc.ir.layout import Layout
from mkc.ir.program import Part, Program, Words
from mkc.ir.span import Box, Span, span
from mkc.ir.tiling import Split, TileMap

Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class Overlap:
    """Tasks of one pattern that share bytes with tasks of another. Those with equal partners share a column."""

    tasks: Ints  # of the one, by place in its part
    columns: Ints  # the column that each of these stands in
    column_of: Ints  # of every task of the other
    count: int


class Pattern:
    """The boxes that the tasks of a part touch of a view, in bytes from the view's first."""

    def __init__(self, layout: Layout, itemsize: int, boxes: Ints) -> None:
        self.layout, self.itemsize = layout, itemsize
        flat = boxes.reshape(len(boxes), -1)
        found, box_of = np.unique(flat, axis=0, return_inverse=True)
        self.boxes = found.reshape(len(found), layout.rank, 2)
        self.box_of: Ints = box_of.reshape(-1)  # per task
        strides = np.array(layout.strides, np.int64)
        self.starts: Ints = self.boxes[:, :, 0] @ strides * itemsize
        self.stops: Ints = ((self.boxes[:, :, 1] - 1) @ strides + 1) * itemsize
        self.by_box = np.argsort(self.box_of, kind="stable")
        self.tasks_of = np.bincount(self.box_of, minlength=len(found))

    @cached_property
    def spans(self) -> tuple[Span, ...]:
        """Of each box."""
        return tuple(span(self.layout, _box(box), self.itemsize) for box in self.boxes.tolist())

    @cached_property
    def forms(self) -> dict[Form, Ints]:
        """The boxes whose spans are alike."""
        boxes: dict[Form, list[int]] = {}
        for box, its in enumerate(self.spans):
            boxes.setdefault(its.form, []).append(box)
        return {form: np.array(alike) for form, alike in boxes.items()}

    @cached_property
    def is_dense(self) -> bool:
        return all(s.is_dense for s in self.spans)

    @cached_property
    def region(self) -> Span:
        """What all tasks touch together. They share out a grid, so it is a box again."""
        lo, hi = self.boxes[:, :, 0].min(axis=0), self.boxes[:, :, 1].max(axis=0)
        return span(self.layout, _box(np.stack([lo, hi], axis=1).tolist()), self.itemsize)

    def of_box(self, box: int) -> Ints:
        """The tasks that touch it."""
        first = int(self.tasks_of[:box].sum())
        return self.by_box[first : first + int(self.tasks_of[box])]


class Patterns:
    """All patterns of a program and their overlaps, each found once."""

    def __init__(self, program: Program) -> None:
        self._ranges = program.tasks["ranges"].astype(np.int64)
        self._cuts: dict[bytes, bytes] = {}  # equal ranges are one key
        self._known: dict[object, Pattern] = {}
        self._overlaps: dict[tuple[int, int, int], Overlap | None] = {}

    def of(self, part: Part, tile_map: TileMap) -> Pattern:
        ranges = self._ranges[slice(*part.tasks)]
        tensor, axes = tile_map.tensor, [split.axis for split in tile_map.dims if split is not None]
        cuts = ranges[:, axes].tobytes()
        cuts = self._cuts.setdefault(cuts, cuts)
        key = (tensor.dtype.itemsize, tensor.shape, tensor.layout.strides, tile_map.dims, len(ranges), cuts)
        if key not in self._known:
            layout = Layout(tensor.shape, tensor.layout.strides)
            self._known[key] = Pattern(layout, tensor.dtype.itemsize, _boxes(tile_map, ranges))
        return self._known[key]

    def overlap(self, one: Pattern, other: Pattern, shift: int) -> Overlap | None:
        """Which tasks share a byte when the other's view begins `shift` bytes after the one's. None: no two."""
        key = (id(one), id(other), shift)
        if key not in self._overlaps:
            self._overlaps[key] = _overlap(one, other, shift)
        return self._overlaps[key]


def _boxes(tile_map: TileMap, ranges: Words) -> Ints:
    """[tasks, rank, 2], as `TileMap.at` has it."""
    boxes = np.empty((len(ranges), len(tile_map.dims), 2), np.int64)
    for dim, (split, extent) in enumerate(zip(tile_map.dims, tile_map.tensor.shape, strict=True)):
        boxes[:, dim] = (0, extent) if split is None else _shared(split, ranges)
    return boxes


def _shared(split: Split, ranges: Words) -> Words:
    lo, hi = ranges[:, split.axis, 0], ranges[:, split.axis, 1]
    return np.stack([lo * split.each // split.share, -(-hi * split.each // split.share)], axis=1)


def _box(box: list[list[int]]) -> Box:
    return tuple((lo, hi) for lo, hi in box)


def _overlap(one: Pattern, other: Pattern, shift: int) -> Overlap | None:
    meets = _meeting(one, other, shift)
    if not meets.any():
        return None
    different, of_box = np.unique(meets.T, axis=0, return_inverse=True)  # [columns, boxes of the one]
    columns, boxes = np.nonzero(different)
    tasks = [one.of_box(box) for box in boxes.tolist()]
    return Overlap(
        np.concatenate(tasks),
        np.repeat(columns, [len(t) for t in tasks]),
        of_box.reshape(-1)[other.box_of],
        len(different),
    )


def _meeting(one: Pattern, other: Pattern, shift: int) -> NDArray[np.bool_]:
    """Which boxes of the two share a byte, [one, other]. Exact."""
    meets = np.zeros((len(one.boxes), len(other.boxes)), np.bool_)
    for (form, mine), (others_form, theirs) in product(one.forms.items(), other.forms.items()):
        apart = (other.starts[theirs] + shift) - one.starts[mine][:, None]
        meets[np.ix_(mine, theirs)] = sum(comb.holds(apart) for comb in distances(form, others_form))
    return meets
