"""Graph -> the rows that an attention multiplies: what became its queries or its keys, by norms and rotations that it can take in."""

from dataclasses import dataclass, replace

from mkc.ir.dtype import DType
from mkc.ir.expr import Arg, Call
from mkc.ir.graph import Node, Tensor
from mkc.ir.layout import Layout
from mkc.ops._streaming import VECTOR
from mkc.ops.rms_norm import ROUNDED, gain
from mkc.passes._uses import Uses

UNIT = 16  # heads, and what is turned of them, are so many units deep


@dataclass(frozen=True, slots=True)
class Rows:
    """What became the queries, or the keys: rows [N, D], [B, N, D] of several sequences, perhaps normalised, their first R
    dims perhaps turned."""

    tensor: Tensor
    gain: Tensor | None
    offset: float  # that gains are added to
    eps: float
    angles: tuple[Tensor, ...]  # cos and sin [R], or [B, R]
    read: tuple[tuple[Tensor, int], ...]  # each tensor and the node that read it
    absorbed: tuple[int, ...]


def rows_of(uses: Uses, tensor: Tensor, reader: int, batch: int) -> Rows | None:
    depth, absorbed, angles = tensor.shape[-1], list[int](), tuple[Tensor, ...]()
    factor, offset, eps = None, 0.0, 0.0
    read = list[tuple[Tensor, int]]()
    turning = _turning(uses, tensor, reader, batch)
    if turning:
        tensor, angles, reader = turning.source, turning.angles, turning.numbers[0]
        read += [(line, turning.numbers[-1]) for line in angles]
        absorbed += turning.numbers
    number = _step(uses, tensor, reader, "rms_norm")
    scaled = gain(uses.nodes[number]) if number is not None else None
    if number is not None and scaled:
        (factor, offset), tensor, reader = scaled, uses.nodes[number].inputs[0], number
        eps = uses.nodes[number].number("eps")
        absorbed.append(number)
        cast = uses.maker(tensor, "elementwise")
        if cast is not None and uses.nodes[cast]["expr"] == Call("to_float32", (Arg(0),)):
            tensor, reader = uses.nodes[cast].inputs[0], cast
    matrix = heads_of(tensor, depth, batch)
    if matrix is None or matrix.dtype is not DType.BF16 or (factor and factor.shape != (depth,)):
        return None
    return Rows(matrix, factor, offset, eps, angles, (*read, (matrix, reader)), tuple(absorbed))


def agree(queries: Rows, keys: Rows) -> bool:
    """Both are normalised alike, by gains of their own, and turned alike."""
    return (queries.eps, queries.offset, queries.angles) == (keys.eps, keys.offset, keys.angles)


@dataclass(frozen=True, slots=True)
class _Turning:
    """The rotation of a row's first dims, all or some: what it reads, and the nodes that do it, the first reader first."""

    source: Tensor
    angles: tuple[Tensor, ...]
    numbers: tuple[int, ...]


def _turning(uses: Uses, tensor: Tensor, reader: int, batch: int) -> _Turning | None:
    number = _step(uses, tensor, reader, "rotary")
    if number is not None and (lines := _lines(uses.nodes[number], batch)):
        return _Turning(uses.nodes[number].inputs[0], lines, (number,))
    return _turning_of_some(uses, tensor, reader, batch)


def _turning_of_some(uses: Uses, tensor: Tensor, reader: int, batch: int) -> _Turning | None:
    """Two nodes fill the tensor: one turns the first dims of a source, and one copies those that follow."""
    writers = uses.writers[tensor.storage]
    if len(writers) != 2 or not uses.is_private(tensor, reader) or {uses.nodes[w].op for w in writers} != {"rotary", "elementwise"}:
        return None
    turns, copies = sorted(writers, key=lambda w: uses.nodes[w].op != "rotary")
    turned, copied, lines = uses.nodes[turns], uses.nodes[copies], _lines(uses.nodes[turns], batch)
    if not lines or copied["expr"] != Arg(0) or len(copied.inputs) != 1:
        return None
    source = _side_by_side(turned.inputs[0], copied.inputs[0])
    made = _side_by_side(turned.output, copied.output)
    alike = source and made and source.shape == made.shape and source.dtype is made.dtype is DType.BF16
    whole = made and matrix_of(made, made.shape[-1]) == matrix_of(tensor, tensor.shape[-1]) and made.layout.numel == tensor.layout.numel
    still = source and uses.are_still((source,), min(turns, copies), max(turns, copies))
    return _Turning(source, lines, (min(turns, copies), max(turns, copies))) if source and alike and whole and still else None


def _side_by_side(first: Tensor, then: Tensor) -> Tensor | None:
    """The tensor whose last dimension is that of the first, and then that of the other."""
    (*lead, turned), steps = first.shape, first.layout.strides
    alike = then.storage == first.storage and then.dtype is first.dtype and then.shape[:-1] == first.shape[:-1]
    same = all(n == 1 or s == t for n, s, t in zip(first.shape, steps, then.layout.strides, strict=True))
    follows = steps[-1] == 1 and then.layout.offset == first.layout.offset + turned
    layout = Layout((*lead, turned + then.shape[-1]), steps, first.layout.offset)
    return first.view(layout) if alike and same and follows else None


def _lines(rotary: Node, batch: int) -> tuple[Tensor, ...]:
    """cos and sin [R], or [B, R], of a rotation that does nothing else, and turns all rows of a sequence alike; else nothing."""
    lines = tuple(line for t in rotary.inputs[1:] if (line := _line(t, batch)) and _is_aligned(line.layout))
    alike = len(lines) == 2 and lines[0].dtype is lines[1].dtype and lines[0].shape[-1] % UNIT == 0
    return lines if alike and rotary["epilogue"] in (Arg(0), ROUNDED) else ()


def _is_aligned(layout: Layout) -> bool:
    return not any(n % VECTOR for n in (layout.offset, *layout.strides[:-1]))


def _step(uses: Uses, tensor: Tensor, reader: int, op: str) -> int | None:
    """The node of this operator that makes the tensor, row by row, for this reader alone."""
    number = uses.maker(tensor, op)
    if number is None or not uses.is_private(tensor, reader):
        return None
    depth, out = tensor.shape[-1], uses.nodes[number].output
    same = out.dtype is DType.BF16 and out.shape[-1] == depth and matrix_of(tensor, depth) == matrix_of(out, depth)
    return number if same and matrix_of(out, depth) is not None else None


def matrix_of(tensor: Tensor, depth: int) -> Tensor | None:
    """The tensor as [N, depth], when its rows lie one like the other, where vectors can be read."""
    rows = tensor.layout.numel // depth
    layout = tensor.layout.reshape((rows, depth))
    if layout is None or layout.strides[1] != 1:
        return None
    layout = replace(layout, strides=(layout.strides[0] if rows > 1 else depth, 1))
    return tensor.view(layout) if not any(n % VECTOR for n in (layout.offset, *layout.strides[:1], depth)) else None


def heads_of(tensor: Tensor, depth: int, batch: int) -> Tensor | None:
    """As `matrix_of`; of several sequences [B, N, depth]."""
    if batch == 1:
        return matrix_of(tensor, depth)
    step = tensor.layout.strides[0]
    if tensor.shape[0] != batch or step % VECTOR:
        return None
    each = matrix_of(tensor.view(tensor.layout.select(0, 0)), depth)
    return each and each.view(Layout((batch, *each.shape), (step, *each.layout.strides), tensor.layout.offset))


def _line(tensor: Tensor, batch: int) -> Tensor | None:
    """[D] when all rows of the tensor are the same one; [B, D] when those of each sequence are."""
    *lead, (depth, step) = zip(tensor.shape, tensor.layout.strides, strict=True)
    inner = lead if batch == 1 else lead[1:]
    same = step == 1 and all(n == 1 or s == 0 for n, s in inner) and tensor.dtype in (DType.BF16, DType.F32)
    if not same or (batch > 1 and lead[0][0] != batch):
        return None
    first = lead[:1] if batch > 1 else []
    return tensor.view(Layout((*(n for n, _ in first), depth), (*(s for _, s in first), 1), tensor.layout.offset))
