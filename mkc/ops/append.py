"""cache[..., index[..., n], ...] = source[..., n, ...]: rows of a tensor, such as a KV cache, written where they lie."""

from collections.abc import Sequence

import numpy as np

from mkc.errors import UnsupportedError
from mkc.ir.builder import Builder
from mkc.ir.cost import cut
from mkc.ir.dtype import Array, DType
from mkc.ir.graph import Kind, Node, Tensor
from mkc.ir.layout import Layout, contiguous
from mkc.ir.target import Target
from mkc.ir.tiling import Split, TileMap, Tiling
from mkc.ops import Op


def reference(node: Node, ins: Sequence[Array]) -> tuple[Array, ...]:
    """index [N], or [..., N] with the dimensions before `dim`; source like the cache but N along `dim`; the cache as it is.

    Rows whose index lies outside the cache are left out; of several rows with one index the last stays. With `wraps` an
    index may count from the end.
    """
    index, source, cache = ins
    dim, written = node.integer("dim"), cache.copy()
    rows = np.where((index < 0) & bool(node["wraps"]), index + cache.shape[dim], index)
    for place in np.ndindex(*index.shape[:-1]):
        for n, row in enumerate(rows[place]):
            if 0 <= row < cache.shape[dim]:
                np.moveaxis(written[place], dim - len(place), 0)[row] = np.moveaxis(source[place], dim - len(place), 0)[n]
    return (written,)


def tile(node: Node, target: Target) -> Tiling:
    """The dimensions before the indexed one are shared out; it and those after it stay whole."""
    index, source, cache = node.inputs
    dim = node.integer("dim")
    grid = cut(target, cache.shape[:dim] or (1,), 2 * source.nbytes, 0)
    dims = tuple(Split(d) if d < dim else None for d in range(cache.layout.rank))
    share = min(1.0, source.layout.numel / cache.layout.numel)
    numbers = TileMap(index, (*dims[: index.layout.rank - 1], None))
    imaps = (numbers, TileMap(source, dims), TileMap(cache, dims, share))
    return Tiling(grid, imaps, (TileMap(node.output, dims, share),))


def arguments(node: Node) -> tuple[str, ...]:
    return str(node.integer("dim")), str(node["wraps"]).lower()


OP = Op("append", "Append", tile, reference, arguments)


# ---- claims


def _written(b: Builder, target: Tensor) -> Tensor:
    """What may be written: the caller's state itself when its old value is not needed any more, else a copy."""
    whole_state = target.storage.kind is Kind.STATE and target.layout == contiguous(target.shape)
    in_place = whole_state and b.last_use and target.nbytes == target.storage.nbytes
    return target if in_place else b.copy(target)


def _apart(b: Builder, x: Tensor, target: Tensor) -> Tensor:
    """Nothing may be read from the memory that is being written."""
    return b.copy(x) if x.storage == target.storage else x


def _append(b: Builder, target: Tensor, dim: int, index: Tensor, source: Tensor, wraps: bool) -> Tensor:
    out = _written(b, target)
    b.append("append", (_apart(b, index, out), _apart(b, source, out), out), (out,), dim=dim, wraps=wraps)
    return out


def _index_copy(b: Builder, target: Tensor, dim: int, index: Tensor, source: Tensor) -> Tensor:
    if target.layout.rank == 0 or source.layout.rank != target.layout.rank:
        raise UnsupportedError("index_copy of scalars")
    rows = index.view(index.layout.expand((source.shape[dim],)))  # an index may be a scalar
    return _append(b, target, dim % target.layout.rank, rows, source, wraps=False)


def _scatter(b: Builder, target: Tensor, dim: int, index: Tensor, source: Tensor) -> Tensor:
    """Of those whose index is the same all along the dimensions behind `dim`, and that write whole rows."""
    dim %= max(target.layout.rank, 1)
    if target.layout.rank == 0 or index.layout.rank != target.layout.rank:
        raise UnsupportedError("a scatter of scalars")
    outer = [d for d in range(target.layout.rank) if d != dim]
    behind = list(zip(index.shape, index.layout.strides, strict=True))[dim + 1 :]
    same = all(n == 1 or step == 0 for n, step in behind)
    if not same or any(index.shape[d] != target.shape[d] for d in outer) or source.shape != index.shape:
        raise UnsupportedError("a scatter of anything but whole rows")
    rows = Layout(index.shape[: dim + 1], index.layout.strides[: dim + 1], index.layout.offset)
    return _append(b, target, dim, index.view(rows), source, wraps=False)


def _index_put(
    b: Builder, target: Tensor, indices: Sequence[Tensor | None], values: Tensor, accumulate: bool = False
) -> Tensor:
    given = [(dim, index) for dim, index in enumerate(indices) if index is not None]
    for _, index in given:
        if index.dtype not in (DType.I64, DType.I32) or index.layout.rank != 1:
            raise UnsupportedError(f"index_put by a {index.dtype} tensor of {index.layout.rank} dimensions")
    if not accumulate and [dim for dim, _ in given] == [0, 2] and target.layout.rank == 4:
        return _append_to_pages(b, target, [index for _, index in given], values)
    if accumulate or len(given) != 1:
        raise UnsupportedError("index_put that adds, or that has more than one index tensor")
    ((dim, index),) = given
    shape = (*target.shape[:dim], index.shape[0], *target.shape[dim + 1 :])
    return _append(b, target, dim, index, values.view(values.layout.expand(shape)), wraps=True)


def _append_to_pages(b: Builder, target: Tensor, indices: Sequence[Tensor], values: Tensor) -> Tensor:
    """target[page, :, row] = values [N, H, D]: torch puts the dimension of indices with a slice between them first."""
    (count,) = np.broadcast_shapes(*(index.shape for index in indices))
    out = _written(b, target)
    source = values.view(values.layout.expand((count, target.shape[1], target.shape[3])))
    places = (_apart(b, index.view(index.layout.expand((count,))), out) for index in indices)
    b.append("append_pages", (*places, _apart(b, source, out), out), (out,))
    return out


def _slice_scatter(
    b: Builder,
    target: Tensor,
    source: Tensor,
    dim: int = 0,
    start: int | None = None,
    end: int | None = None,
    step: int = 1,
) -> Tensor:
    dim %= target.layout.rank
    lo, hi, step = slice(start, end, step).indices(target.shape[dim])
    if lo >= hi:
        return target
    out = _written(b, target)
    b.copy(_apart(b, source, out), out.view(out.layout.slice(dim, lo, hi, step)))
    return out


def _select_scatter(b: Builder, target: Tensor, source: Tensor, dim: int, index: int) -> Tensor:
    dim %= target.layout.rank
    out = _written(b, target)
    b.copy(_apart(b, source, out), out.view(out.layout.select(dim, index % target.shape[dim])))
    return out


CLAIMS = {
    "aten.index_copy.default": _index_copy,
    "aten.index_put.default": _index_put,
    "aten.scatter.src": _scatter,
    "aten.slice_scatter.default": _slice_scatter,
    "aten.select_scatter.default": _select_scatter,
}
