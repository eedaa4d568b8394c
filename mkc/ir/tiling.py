"""How one operator is cut into tasks: a grid of axes, and for every tensor a map from grid point to the box it touches."""

from dataclasses import dataclass
from itertools import product

from mkc.ir.graph import Tensor
from mkc.ir.span import Box

Range = tuple[int, int]  # half open
Point = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Axis:
    """An iteration axis of `extent`, cut into `parts` slices that differ by at most one `unit`."""

    extent: int
    parts: int = 1
    unit: int = 1

    def __post_init__(self) -> None:
        units = -(-self.extent // self.unit)
        if not 1 <= self.parts <= max(units, 1):
            raise ValueError(f"an axis of {self.extent} in units of {self.unit} cannot have {self.parts} parts")

    def at(self, part: int) -> Range:
        units = -(-self.extent // self.unit)
        lo, hi = units * part // self.parts, units * (part + 1) // self.parts
        return lo * self.unit, min(hi * self.unit, self.extent)

    @property
    def longest(self) -> int:
        """Of the slices, in whole units."""
        return -(-self.extent // self.unit // self.parts) * self.unit


@dataclass(frozen=True, slots=True)
class Split:
    """A tensor dimension that follows a grid axis.

    `share` neighbours on the axis use one index of the dimension, or each of them uses `each` indices of it.
    """

    axis: int
    share: int = 1
    each: int = 1


@dataclass(frozen=True, slots=True)
class TileMap:
    """An imap when the tensor is read, an omap when it is written. A None dimension is taken whole.

    `touched` is the share of the box that is really moved, for the cost model: a gather moves a few rows of its table.
    """

    tensor: Tensor
    dims: tuple[Split | None, ...]
    touched: float = 1.0

    def at(self, ranges: tuple[Range, ...]) -> Box:
        def interval(split: Split | None, extent: int) -> Range:
            if split is None:
                return 0, extent
            lo, hi = ranges[split.axis]
            return lo * split.each // split.share, -(-hi * split.each // split.share)

        return tuple(map(interval, self.dims, self.tensor.shape))

    def moved(self, ranges: tuple[Range, ...]) -> float:
        """Bytes of the box at a grid point that are really moved."""
        nbytes = self.touched * self.tensor.dtype.itemsize
        for lo, hi in self.at(ranges):
            nbytes *= hi - lo
        return nbytes


@dataclass(frozen=True, slots=True)
class Tiling:
    """The grid and the maps. The device body gets the ranges of its grid point and the tensors in this order.

    With `pinned`, grid point i in row-major order runs on worker i * workers // size: whoever streams for that worker
    knows where. With `apart`, no task touches what another writes, though the maps cannot say so.
    """

    grid: tuple[Axis, ...]
    imaps: tuple[TileMap, ...]
    omaps: tuple[TileMap, ...]
    pinned: bool = False
    apart: bool = False

    @property
    def size(self) -> int:
        """How many tasks."""
        total = 1
        for axis in self.grid:
            total *= axis.parts
        return total

    def ranges(self) -> list[tuple[Range, ...]]:
        """The ranges of every grid point, last axis fastest."""
        return list(product(*([axis.at(part) for part in range(axis.parts)] for axis in self.grid)))


def whole(tensor: Tensor) -> TileMap:
    """Every task touches all of it."""
    return TileMap(tensor, (None,) * tensor.layout.rank)
