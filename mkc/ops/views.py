"""Calls that only look at a tensor differently: they become layouts, and cost nothing unless strides cannot say them."""

from collections.abc import Callable, Sequence
from itertools import chain

from mkc.errors import UnsupportedError
from mkc.ir.builder import Builder
from mkc.ir.graph import Tensor


def _dim(tensor: Tensor, dim: int, extra: int = 0) -> int:
    return dim % (tensor.layout.rank + extra) if tensor.layout.rank + extra else 0


def _reshape(b: Builder, x: Tensor, shape: Sequence[int], *_: object) -> Tensor:
    return b.reshape(x, b.shape)


def _permute(b: Builder, x: Tensor, dims: Sequence[int]) -> Tensor:
    return x.view(x.layout.permute([_dim(x, d) for d in dims]))


def _transpose(b: Builder, x: Tensor, first: int, second: int) -> Tensor:
    order = list(range(x.layout.rank))
    if order:
        first, second = _dim(x, first), _dim(x, second)
        order[first], order[second] = order[second], order[first]
    return x.view(x.layout.permute(order))


def _t(b: Builder, x: Tensor) -> Tensor:
    return x.view(x.layout.permute(tuple(reversed(range(x.layout.rank)))))


def _bounds(extent: int, start: int | None, stop: int | None) -> tuple[int, int]:
    lo, hi, _ = slice(start, stop).indices(extent)
    return lo, max(lo, hi)


def _slice(b: Builder, x: Tensor, dim: int = 0, start: int | None = None, stop: int | None = None, step: int = 1) -> Tensor:
    dim = _dim(x, dim)
    lo, hi = _bounds(x.shape[dim], start, stop)
    if lo == hi:
        raise UnsupportedError("a slice without elements")
    return x.view(x.layout.slice(dim, lo, hi, step))


def _select(b: Builder, x: Tensor, dim: int, index: int) -> Tensor:
    dim = _dim(x, dim)
    return x.view(x.layout.select(dim, index % x.shape[dim]))


def _expand(b: Builder, x: Tensor, shape: Sequence[int], **_: object) -> Tensor:
    return x.view(x.layout.expand(b.shape))


def _unsqueeze(b: Builder, x: Tensor, dim: int) -> Tensor:
    return x.view(x.layout.unsqueeze(_dim(x, dim, 1)))


def _squeeze(b: Builder, x: Tensor, dims: int | Sequence[int] | None = None) -> Tensor:
    named = range(x.layout.rank) if dims is None else [dims] if isinstance(dims, int) else dims
    gone = {_dim(x, d) for d in named}
    layout = x.layout
    for dim in sorted(gone, reverse=True):
        if layout.shape[dim] == 1:
            layout = layout.squeeze(dim)
    return x.view(layout)


def _pieces(x: Tensor, dim: int, sizes: Sequence[int]) -> tuple[Tensor, ...]:
    stops = [sum(sizes[: i + 1]) for i in range(len(sizes))]
    return tuple(x.view(x.layout.slice(dim, stop - size, stop)) for size, stop in zip(sizes, stops, strict=True))


def _split(b: Builder, x: Tensor, size: int | Sequence[int], dim: int = 0) -> tuple[Tensor, ...]:
    dim = _dim(x, dim)
    if isinstance(size, int):
        full, rest = divmod(x.shape[dim], size)
        size = [size] * full + [rest] * (rest > 0)
    return _pieces(x, dim, size)


def _chunk(b: Builder, x: Tensor, chunks: int, dim: int = 0) -> tuple[Tensor, ...]:
    return _split(b, x, -(-x.shape[_dim(x, dim)] // chunks), dim)


def _unbind(b: Builder, x: Tensor, dim: int = 0) -> tuple[Tensor, ...]:
    dim = _dim(x, dim)
    return tuple(x.view(x.layout.select(dim, i)) for i in range(x.shape[dim]))


def _cat(b: Builder, tensors: Sequence[Tensor], dim: int = 0) -> Tensor:
    """Each part is copied into its slice; `fuse` lets the producer of a part write there in the first place. A tensor
    beside itself is one copy."""
    first, dim = tensors[0], _dim(tensors[0], dim)
    if len(tensors) > 1 and all(t == first for t in tensors):
        apart = first.layout.unsqueeze(dim)
        shape = (*apart.shape[:dim], len(tensors), *apart.shape[dim + 1 :])
        return b.reshape(first.view(apart.expand(shape)), b.shape)
    if len(tensors) == 1 and first.dtype is b.dtype:
        return first
    out = b.new(b.shape, b.dtype, "cat")
    at = 0
    for part in tensors:
        b.copy(part, out.view(out.layout.slice(dim, at, at + part.shape[dim])))
        at += part.shape[dim]
    return out


def _stack(b: Builder, tensors: Sequence[Tensor], dim: int = 0) -> Tensor:
    dim = _dim(tensors[0], dim, 1)
    return _cat(b, [t.view(t.layout.unsqueeze(dim)) for t in tensors], dim)


def _repeat(b: Builder, x: Tensor, counts: Sequence[int]) -> Tensor:
    """All of it over and over, along new dimensions first where there are more counts than dimensions."""
    shape = (*(1 for _ in counts[x.layout.rank :]), *x.shape)
    layout = x.layout.expand(shape)
    for dim in reversed(range(len(shape))):
        layout = layout.unsqueeze(dim)
    return b.reshape(x.view(layout.expand(tuple(chain(*zip(counts, shape, strict=True))))), b.shape)


def _repeat_interleave(b: Builder, x: Tensor, count: int, dim: int | None = None, **_: object) -> Tensor:
    """Each slice so many times, one after the other; of all elements in a row where no dimension is named."""
    flat = x if dim is not None else b.reshape(x, (x.layout.numel,))
    layout = flat.layout.unsqueeze(_dim(flat, dim or 0) + 1)
    shape = list(layout.shape)
    shape[_dim(flat, dim or 0) + 1] = count
    return b.reshape(flat.view(layout.expand(tuple(shape))), b.shape)


CLAIMS: dict[str, Callable[..., object]] = {
    **{f"aten.{name}.default": _reshape for name in ("view", "reshape", "_unsafe_view", "unflatten")},
    "aten.flatten.using_ints": lambda b, x, *_: b.reshape(x, b.shape),
    "aten.unflatten.int": lambda b, x, *_: b.reshape(x, b.shape),
    "aten.permute.default": _permute,
    "aten.transpose.int": _transpose,
    "aten.t.default": _t,
    "aten.slice.Tensor": _slice,
    "aten.narrow.default": lambda b, x, dim, start, length: _slice(b, x, dim, start % x.shape[dim], start % x.shape[dim] + length),
    "aten.select.int": _select,
    "aten.expand.default": _expand,
    "aten.expand_as.default": lambda b, x, _: x.view(x.layout.expand(b.shape)),
    "aten.unsqueeze.default": _unsqueeze,
    **{f"aten.squeeze.{kind}": _squeeze for kind in ("default", "dim", "dims")},
    "aten.split.Tensor": _split,
    "aten.split_with_sizes.default": _split,
    "aten.chunk.default": _chunk,
    "aten.unbind.int": _unbind,
    "aten.cat.default": _cat,
    "aten.repeat.default": _repeat,
    "aten.repeat_interleave.self_int": _repeat_interleave,
    "aten.stack.default": _stack,
}
