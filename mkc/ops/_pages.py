"""A tensor that was put together from pages -> the pool and the table it came from, which tell as much and need no copy."""

from dataclasses import dataclass

from mkc.ir.builder import Builder
from mkc.ir.expr import Arg
from mkc.ir.graph import Node, Tensor
from mkc.ir.layout import Layout, coalesce, contiguous
from mkc.ops._makers import changed_since, maker


@dataclass(frozen=True, slots=True)
class Paged:
    """Row t of head h of sequence b is pool[table[b, t // R], h, t % R]."""

    pool: Tensor  # [P, H, R, D]
    table: Tensor  # [B, N]


def in_pages(b: Builder, x: Tensor) -> Paged | None:
    """Where x [B, H, N * R, D] was made as pool[table].transpose(1, 2).flatten(2, 3), and neither has changed since."""
    copy = maker(b, x, "elementwise")
    seen = x if copy is None else _copied(copy, x)
    gather = None if seen is None else maker(b, seen, "gather")
    if seen is None or gather is None or gather["epilogue"] != Arg(0) or gather.output.dtype is not x.dtype:
        return None
    paged = _paged(gather, seen.layout, x)
    still = paged is not None and not any(changed_since(b, gather, t) for t in (paged.pool, paged.table))
    return paged if still else None


def _copied(copy: Node, x: Tensor) -> Tensor | None:
    """What was copied into all of x, dimension by dimension."""
    same = copy["expr"] == Arg(0) and copy.inputs[0].dtype is x.dtype and copy.output.layout.reshape(x.shape) == x.layout
    return copy.inputs[0] if same else None


def _paged(gather: Node, seen: Layout, x: Tensor) -> Paged | None:
    """As x sees the pages [1, B * N, H * R * D] that were gathered, one by one or with their rows in a dimension."""
    pool, index = gather.inputs
    (batch, heads, room, depth), (_, count, width) = x.shape, gather.output.shape
    size, most = width // (heads * depth), count // batch
    if pool.shape[0] != 1 or index.layout.strides[2] != 0 or size * heads * depth != width or most * size != room:
        return None
    gathered = contiguous((batch, most, heads, size, depth)).permute((0, 2, 1, 3, 4))
    pages = pool.layout.reshape((pool.shape[1], heads, size, depth))
    table = Layout(index.shape[1:2], index.layout.strides[1:2], index.layout.offset).reshape((batch, most))
    if not (_shows(seen, gathered) or _shows(seen, gathered.reshape(x.shape))) or pages is None or table is None:
        return None
    return Paged(pool.view(pages), index.view(table)) if pages.strides[3] == 1 else None


def _shows(view: Layout, other: Layout | None) -> bool:
    """The same elements at the same places; how far they step where there is but one does not matter."""
    return other is not None and view.shape == other.shape and len({*coalesce([view, other])}) == 1
