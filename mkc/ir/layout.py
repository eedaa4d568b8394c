"""How a tensor lies in its storage: shape, strides and offset in elements, and the views that cost nothing."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod

Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Layout:
    """Element (i, j, ...) lies at offset + i·strides[0] + j·strides[1] + ..., all in elements."""

    shape: Shape
    strides: Shape
    offset: int = 0

    @property
    def rank(self) -> int:
        return len(self.shape)

    @property
    def numel(self) -> int:
        return prod(self.shape)

    @property
    def is_contiguous(self) -> bool:
        """True when the elements follow each other without gaps, whatever the strides of extents of one."""
        expected = contiguous(self.shape).strides
        return all(s == e for n, s, e in zip(self.shape, self.strides, expected, strict=True) if n != 1)

    @property
    def is_injective(self) -> bool:
        """True when no two indices share an element, as seen by nesting strides; broadcasting is not."""
        reach = 1
        for stride, extent in sorted((s, n) for n, s in zip(self.shape, self.strides, strict=True) if n > 1):
            if stride < reach:
                return False
            reach = stride * (extent - 1) + reach
        return True

    def permute(self, order: Sequence[int]) -> "Layout":
        return replace(
            self, shape=tuple(self.shape[d] for d in order), strides=tuple(self.strides[d] for d in order)
        )

    def slice(self, dim: int, start: int, stop: int, step: int = 1) -> "Layout":
        """[start:stop:step] along `dim`, bounds already inside the tensor, step positive."""
        extent = max(0, -(-(stop - start) // step))
        return Layout(
            _with(self.shape, dim, extent),
            _with(self.strides, dim, self.strides[dim] * step),
            self.offset + start * self.strides[dim],
        )

    def select(self, dim: int, index: int) -> "Layout":
        return self.slice(dim, index, index + 1).squeeze(dim)

    def squeeze(self, dim: int) -> "Layout":
        return replace(self, shape=_without(self.shape, dim), strides=_without(self.strides, dim))

    def unsqueeze(self, dim: int) -> "Layout":
        return replace(
            self,
            shape=(*self.shape[:dim], 1, *self.shape[dim:]),
            strides=(*self.strides[:dim], 0, *self.strides[dim:]),
        )

    def expand(self, shape: Shape) -> "Layout":
        """Broadcasting: new leading dimensions and extents of one repeat at stride zero."""
        lead = len(shape) - self.rank
        old = (1,) * lead + self.shape
        strides = (0,) * lead + self.strides
        return replace(
            self,
            shape=shape,
            strides=tuple(s if o == n else 0 for o, n, s in zip(old, shape, strides, strict=True)),
        )

    def reshape(self, shape: Shape) -> "Layout | None":
        """The same elements in the same order under another shape, or None where strides cannot say it."""
        if 0 in shape or 0 in self.shape:
            return replace(contiguous(shape), offset=self.offset)
        runs = _merged(self)  # outermost first
        strides: list[int] = []
        for extent in reversed(shape):
            while runs and runs[-1][0] == 1:
                runs.pop()
            if extent == 1:
                strides.append(0)
                continue
            if not runs or runs[-1][0] % extent:
                return None
            count, stride = runs.pop()
            strides.append(stride)
            runs.append((count // extent, stride * extent))
        return Layout(shape, tuple(reversed(strides)), self.offset)

    def __str__(self) -> str:
        text = "x".join(map(str, self.shape)) or "scalar"
        if self.is_contiguous:
            return text if self.offset == 0 else f"{text}@{self.offset}"
        return f"{text}@{self.offset}/{','.join(map(str, self.strides))}"


def contiguous(shape: Shape) -> Layout:
    """Row-major, from the storage's first element."""
    strides, step = [], 1
    for extent in reversed(shape):
        strides.append(step)
        step *= extent
    return Layout(shape, tuple(reversed(strides)))


def coalesce(layouts: Sequence[Layout]) -> tuple[Layout, ...]:
    """Merge neighbouring dimensions wherever every one of these equally shaped layouts allows it."""
    shape = layouts[0].shape
    kept: list[list[int]] = []  # groups of dimensions, outermost first
    for dim, extent in enumerate(shape):
        if extent == 1:
            continue
        if kept and all(_mergeable(x, kept[-1][-1], dim) for x in layouts):
            kept[-1].append(dim)
        else:
            kept.append([dim])
    extents = tuple(prod(shape[d] for d in group) for group in kept) or (1,)
    last = [group[-1] for group in kept]
    return tuple(Layout(extents, tuple(x.strides[d] for d in last) or (0,), x.offset) for x in layouts)


def _mergeable(layout: Layout, outer: int, inner: int) -> bool:
    return layout.strides[outer] == layout.strides[inner] * layout.shape[inner]


def _merged(layout: Layout) -> list[tuple[int, int]]:
    """(extent, stride) runs, outermost first, with every pair that follows on merged."""
    runs: list[tuple[int, int]] = []
    for extent, stride in zip(layout.shape, layout.strides, strict=True):
        if extent == 1:
            continue
        if runs and runs[-1][1] == stride * extent:
            runs[-1] = (runs[-1][0] * extent, stride)
        else:
            runs.append((extent, stride))
    return runs


def _with(values: Shape, at: int, value: int) -> Shape:
    return (*values[:at], value, *values[at + 1 :])


def _without(values: Shape, at: int) -> Shape:
    return (*values[:at], *values[at + 1 :])
