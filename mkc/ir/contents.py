"""Program, section -> nothing, or UnsoundPlan. In program order, whoever reads a tensor finds what was written to that tensor.

Order alone cannot tell: two tensors that were given the same bytes are read and written in order, and wrong.
"""

import numpy as np

from mkc.errors import UnsoundPlan
from mkc.ir.graph import Kind, Storage, Tensor
from mkc.ir.patterns import Ints, Patterns
from mkc.ir.program import Part, Program
from mkc.ir.refusal import unsound
from mkc.ir.span import Span

MADE = (Kind.ARENA, Kind.OUTPUT, Kind.WORDS)  # what a program finds uninitialised, or left by the step before


def check_contents(program: Program, section: int, patterns: Patterns) -> None:
    """A step begins with nothing: what it reads of the arena it has written itself; outputs it leaves complete."""
    contents = _Contents()
    for part in program.meanings[section].parts:
        for tile_map in part.tiling.imaps:
            _read(program, contents, part, tile_map.tensor, patterns.of(part, tile_map).region)
        for tile_map in part.tiling.omaps:
            contents.write(tile_map.tensor, patterns.of(part, tile_map).region)
    for slot in program.slots:
        if slot.kind is Kind.OUTPUT and slot.section == section:
            missing = contents.missing(slot.name, np.array([[0, slot.nbytes]]))
            if missing is not None:
                raise UnsoundPlan(f"nobody in section {section} writes byte {missing} of {slot}")


def _read(program: Program, contents: "_Contents", part: Part, tensor: Tensor, region: Span) -> None:
    if tensor.storage.kind not in MADE:
        return
    missing = contents.missing(tensor.storage.name, _runs(region) + _start(tensor))
    if missing is not None:
        sentence = f"{part.name} reads {tensor}, whose byte {missing} ({_place(tensor.storage, missing)}) does not hold it then"
        other = contents.taken.get(tensor.storage.name)
        raise unsound(program, f"{sentence}: {f'{other} lies there' if other else 'nobody has written it'}", part.tasks[0])


def _place(storage: Storage, byte: int) -> str:
    return f"byte {storage.start + byte} of the arena" if storage.kind is Kind.ARENA else storage.name


class _Contents:
    """Which bytes of each storage hold what was written to it, as sorted runs."""

    def __init__(self) -> None:
        self.held: dict[str, Ints] = {}
        self.arena: dict[str, Storage] = {}  # those with something in it
        self.taken: dict[str, str] = {}  # who took a storage's bytes last

    def write(self, tensor: Tensor, region: Span) -> None:
        storage, start = tensor.storage, _start(tensor)
        if storage.kind not in MADE:
            return
        if storage.kind is Kind.ARENA:
            self._take(storage, storage.start + start + region.start, storage.start + start + region.stop)
        self.held[storage.name] = _union(self.held.get(storage.name, _NOTHING), _runs(region) + start)

    def _take(self, storage: Storage, lo: int, hi: int) -> None:
        """Whatever else lies between these bytes of the arena is gone: no two tensors are ever interleaved."""
        self.arena[storage.name] = storage
        for other in list(self.arena.values()):
            if other.name != storage.name and other.start < hi and lo < other.start + other.nbytes:
                self.taken[other.name] = storage.name
                self.held[other.name] = _without(self.held[other.name], lo - other.start, hi - other.start)
                if not len(self.held[other.name]):
                    del self.arena[other.name]

    def missing(self, storage: str, wanted: Ints) -> int | None:
        """The first byte wanted that is not held."""
        held = self.held.get(storage, _NOTHING)
        at = np.searchsorted(held[:, 0], wanted[:, 0], side="right") - 1
        until = np.where(at >= 0, held[at, 1], -1) if len(held) else np.full(len(wanted), -1)
        short = np.flatnonzero(until < wanted[:, 1])
        return int(max(wanted[short[0], 0], until[short[0]])) if len(short) else None


_NOTHING: Ints = np.zeros((0, 2), np.int64)


def _start(tensor: Tensor) -> int:
    return tensor.layout.offset * tensor.dtype.itemsize


def _runs(region: Span) -> Ints:
    """Every run of a span."""
    starts = np.array([region.start], np.int64)
    for stride, count in region.levels:
        starts = np.add.outer(starts, stride * np.arange(count)).reshape(-1)
    starts.sort()
    return np.stack([starts, starts + region.run], axis=1)


def _union(held: Ints, more: Ints) -> Ints:
    runs = np.concatenate([held, more])
    runs = runs[np.argsort(runs[:, 0], kind="stable")]
    stops = np.maximum.accumulate(runs[:, 1])
    opens = np.concatenate([[True], runs[1:, 0] > stops[:-1]])
    closes = np.concatenate([opens[1:], [True]])
    return np.stack([runs[opens, 0], stops[closes]], axis=1)


def _without(held: Ints, lo: int, hi: int) -> Ints:
    below = np.stack([held[:, 0], np.minimum(held[:, 1], lo)], axis=1)
    above = np.stack([np.maximum(held[:, 0], hi), held[:, 1]], axis=1)
    runs = np.concatenate([below, above])
    return runs[runs[:, 0] < runs[:, 1]]
