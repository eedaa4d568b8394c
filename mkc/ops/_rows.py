"""What operators that work along rows share: dimensions brought last, rows merged into few axes, the maps over them."""

from collections.abc import Sequence

from mkc.errors import UnsupportedError
from mkc.ir.builder import Builder
from mkc.ir.cost import cut
from mkc.ir.graph import Node, Tensor
from mkc.ir.layout import Layout, Shape, coalesce
from mkc.ir.program import MAX_AXES
from mkc.ir.target import Target
from mkc.ir.tiling import Split, TileMap, Tiling


def dims_of(x: Tensor, dims: int | Sequence[int] | None) -> tuple[int, ...]:
    """Dimensions as torch names them: negative ones count from the end, none at all means every one."""
    rank = x.layout.rank
    named = [dims] if isinstance(dims, int) else list(dims or range(rank))
    return tuple(sorted({d % rank for d in named if rank}))


def last(layout: Layout, dims: Sequence[int]) -> Layout:
    """`dims` moved behind all others, both in their order."""
    return layout.permute([*(d for d in range(layout.rank) if d not in dims), *dims])


def merged(tensors: Sequence[Tensor], first: int, end: int) -> tuple[Tensor, ...]:
    """Dimensions [first : end), equal in all tensors, merged wherever all of them allow it; at least one stays."""
    parts = coalesce(
        [Layout(t.shape[first:end], t.layout.strides[first:end], t.layout.offset) for t in tensors]
    )
    return tuple(t.view(_spliced(t.layout, first, end, part)) for t, part in zip(tensors, parts, strict=True))


def _spliced(layout: Layout, first: int, end: int, part: Layout) -> Layout:
    def splice(whole: Shape, piece: Shape) -> Shape:
        return (*whole[:first], *piece, *whole[end:])

    return Layout(splice(layout.shape, part.shape), splice(layout.strides, part.strides), layout.offset)


def few_rows(b: Builder, x: Tensor, inner: int, axes: int = MAX_AXES) -> Tensor:
    """The tensor itself, or a copy when the dimensions before its last `inner` do not merge into as few as `axes`."""
    rows = x.layout.rank - inner
    (view,) = merged((x,), 0, rows)
    return x if view.layout.rank - inner <= axes else b.copy(x)


def share_rows(node: Node, target: Target, flops: float) -> Tiling:
    """Tasks of whole rows, for operators whose tensors all have the output's shape: last dimension whole, others cut."""
    tensors = merged((*node.inputs, node.output), 0, node.output.layout.rank - 1)
    rows = tensors[-1].layout.rank - 1
    check_axes(node, rows)
    maps = tuple(by_rows(t, rows) for t in tensors)
    return Tiling(cut(target, tensors[-1].shape[:rows], traffic(node), flops), maps[:-1], maps[-1:])


def check_axes(node: Node, axes: int) -> None:
    """A task has room for so many ranges."""
    if axes > MAX_AXES:
        raise UnsupportedError(f"{node.name} has {axes} axes that do not merge; at most {MAX_AXES} can stay")


def by_rows(tensor: Tensor, rows: int) -> TileMap:
    """The first `rows` dimensions follow the grid's axes, the rest is taken whole."""
    return TileMap(tensor, tuple(Split(d) if d < rows else None for d in range(tensor.layout.rank)))


def traffic(node: Node) -> float:
    """Bytes that a node moves when everything is read once."""
    return float(sum(min(t.nbytes, t.storage.nbytes) for t in (*node.inputs, *node.outputs)))
