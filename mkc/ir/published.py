"""Program, section -> Polls, or UnsoundPlan. Published words: each has bytes of its own, and in every step one writer.

Then a word that a reader looks for is there in the end, and a reader comes after who wrote it, as far as that word goes.
"""

from collections import defaultdict
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from mkc.ir.dtype import DType
from mkc.ir.graph import Kind, Storage, Tensor
from mkc.ir.layout import Layout
from mkc.ir.patterns import Ints, Overlap, Pattern, Patterns
from mkc.ir.program import Part, Program
from mkc.ir.refusal import unsound
from mkc.ir.tiling import TileMap
from mkc.ir.words import taken_bytes

WORD_BYTES, LOAD_BYTES = 8, 16  # a word; what readers load at once


@dataclass(slots=True)
class Polls:
    """Tasks, counted from the section's first, wait for words of groups of others: all that they may, and what they surely do."""

    groups: list[tuple[Ints, NDArray[np.bool_]]] = field(default_factory=list)  # and whether all of each one's words are looked at
    possible: dict[int, list[int]] = field(default_factory=lambda: defaultdict(list))
    sure: dict[int, list[int]] = field(default_factory=lambda: defaultdict(list))


def polls_of(program: Program, section: int, patterns: Patterns) -> Polls:
    parts = program.meanings[section].parts
    _owned(program, parts)
    _by_the_word(program, parts, patterns)
    writers = _writers(program, parts)
    polls = _Finder(program.meanings[section].tasks[0], patterns, writers)
    for part in parts:
        for tile_map in part.tiling.imaps:
            if is_words(tile_map):
                polls.add(part, tile_map, range(part.tasks[1] - part.tasks[0]), polls.found.possible)
        for tile_map, tasks in part.streamed.polls if part.streamed else ():
            polls.add(part, tile_map, tasks, polls.found.sure)
    return polls.found


def is_words(tile_map: TileMap) -> bool:
    return tile_map.tensor.storage.kind is Kind.WORDS


# ---- whose they are


def _owned(program: Program, parts: tuple[Part, ...]) -> None:
    """Only streaming bodies see words, in whole words, and no two storages share one."""
    taken: dict[Storage, tuple[int, DType]] = {}
    for part in parts:
        for tile_map in (*part.tiling.omaps, *part.tiling.imaps):
            if is_words(tile_map):
                tensor = tile_map.tensor
                if part.streamed is None:
                    raise unsound(program, f"{part.name} does not stream, and touches the words {tensor}", part.tasks[0])
                _, dtype = taken.setdefault(tensor.storage, (taken_bytes(tensor), tensor.dtype))
                if dtype is not tensor.dtype or not _is_aligned(tensor):
                    raise unsound(program, f"{part.name} sees {tensor} otherwise than as words of {dtype}", part.tasks[0])
    places = sorted((storage.start, storage.start + size, storage.name) for storage, (size, _) in taken.items())
    for (_, stop, one), (start, _, other) in pairwise(places):
        if start < stop:
            raise unsound(program, f"{one} and {other} share words, whose use counts would say nothing: byte {start}")


def _is_aligned(tensor: Tensor) -> bool:
    """Floats count from their storage's first, for words are wider than what they carry. Rows may lie apart."""
    layout = tensor.layout
    bf16 = tensor.dtype is DType.BF16 and layout.offset * tensor.dtype.itemsize % LOAD_BYTES == 0 and _has_rows(layout)
    floats = tensor.dtype is DType.F32 and layout.offset == 0 and layout.is_contiguous
    return (bf16 or floats) and tensor.storage.start % LOAD_BYTES == 0


def _has_rows(layout: Layout) -> bool:
    """The last dimension has no gaps, and steps of the others are of what is loaded at once, unless there are no gaps at all."""
    *lead, last = zip(layout.shape, layout.strides, strict=True)
    even = all(n == 1 or step * DType.BF16.itemsize % LOAD_BYTES == 0 for n, step in lead)
    return layout.is_contiguous or (last[1] == 1 and even)


def _by_the_word(program: Program, parts: tuple[Part, ...], patterns: Patterns) -> None:
    for part in parts:
        for tile_map in (*part.tiling.omaps, *part.tiling.imaps):
            narrow = is_words(tile_map) and tile_map.tensor.dtype is DType.BF16
            if narrow and not _has_whole_words(patterns.of(part, tile_map)):
                raise unsound(program, f"{part.name} shares words of {tile_map.tensor} between tasks", part.tasks[0])


def _has_whole_words(pattern: Pattern) -> bool:
    """Every box begins and ends with a word."""
    runs = [s.run for s in pattern.spans] + [stride for s in pattern.spans for stride, _ in s.levels]
    return not any(number % WORD_BYTES for number in (*runs, *pattern.starts.tolist(), *pattern.stops.tolist()))


def _writers(program: Program, parts: tuple[Part, ...]) -> dict[Storage, tuple[Part, TileMap]]:
    writers: dict[Storage, tuple[Part, TileMap]] = {}
    for part in parts:
        for tile_map in part.tiling.omaps:
            if is_words(tile_map):
                storage = tile_map.tensor.storage
                if storage in writers:
                    raise unsound(program, f"{writers[storage][0].name} and {part.name} both publish {storage.name}", part.tasks[0])
                writers[storage] = part, tile_map
    return writers


# ---- who waits for whom


class _Finder:
    def __init__(self, first: int, patterns: Patterns, writers: dict[Storage, tuple[Part, TileMap]]) -> None:
        self.first = first
        self.patterns = patterns
        self.writers = writers
        self.found = Polls()
        self.known: dict[tuple[int, Overlap], list[int]] = {}

    def add(self, part: Part, tile_map: TileMap, tasks: range | tuple[int, ...], polls: dict[int, list[int]]) -> None:
        """Enter the writers of what these tasks of the part wait for."""
        storage = tile_map.tensor.storage
        if storage not in self.writers:
            return  # refused by `check_contents`, which tells what is missing
        writer, written = self.writers[storage]
        one, other = self.patterns.of(writer, written), self.patterns.of(part, tile_map)
        overlap = self.patterns.overlap(one, other, start_of(tile_map.tensor) - start_of(written.tensor))
        if overlap is not None:
            groups = self._groups(writer, overlap, _covered(one, other, overlap, start_of(tile_map.tensor) - start_of(written.tensor)))
            for task in tasks:
                polls[part.tasks[0] - self.first + task].append(groups[overlap.column_of[task]])

    def _groups(self, writer: Part, overlap: Overlap, covered: NDArray[np.bool_]) -> list[int]:
        """The number of each column's group."""
        key = writer.tasks[0], overlap
        if key not in self.known:
            tasks = overlap.tasks + (writer.tasks[0] - self.first)
            begins = np.searchsorted(overlap.columns, np.arange(overlap.count + 1))
            self.known[key] = [len(self.found.groups) + column for column in range(overlap.count)]
            self.found.groups += [(tasks[lo:hi], covered[lo:hi]) for lo, hi in pairwise(begins.tolist())]
        return self.known[key]


def _covered(one: Pattern, other: Pattern, overlap: Overlap, shift: int) -> NDArray[np.bool_]:
    """Of each entry of the overlap: whether those who share its column look at all that the task publishes there."""
    starts, stops = np.full(overlap.count, -(2**62)), np.full(overlap.count, 2**62)
    np.maximum.at(starts, overlap.column_of, other.starts[other.box_of] + shift)
    np.minimum.at(stops, overlap.column_of, other.stops[other.box_of] + shift)
    begin, end = one.starts[one.box_of[overlap.tasks]], one.stops[one.box_of[overlap.tasks]]
    inside = (starts[overlap.columns] <= begin) & (end <= stops[overlap.columns])
    return np.asarray(inside & other.is_dense)


def start_of(tensor: Tensor) -> int:
    return tensor.layout.offset * tensor.dtype.itemsize
