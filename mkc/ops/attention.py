"""softmax(scale q kT + mask) v, a few rows at a time against blocks of keys; the scores never leave a worker."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import sqrt

import numpy as np

from mkc.errors import UnsupportedError
from mkc.ir.builder import Builder
from mkc.ir.cost import worthwhile_parts
from mkc.ir.dtype import Array, DType
from mkc.ir.expr import Arg, Call, Const, Expr
from mkc.ir.graph import Attr, Node, Tensor
from mkc.ir.layout import Layout, Shape
from mkc.ir.target import Target
from mkc.ir.tiling import Axis, Split, TileMap, Tiling
from mkc.ops import Op, elementwise
from mkc.ops._functions import cpp
from mkc.ops._makers import changed_since, maker
from mkc.ops._pages import in_pages

ROWS = 4  # of q that share a pass over the keys
BLOCK = 64  # neighbouring keys that go to one part
MANY_WORKERS = 128  # of a large GPU; fewer lines of attention than that share out their keys
MANY_KEYS = 512  # below this, one worker reads them sooner than two would meet


def reference(node: Node, ins: Sequence[Array]) -> tuple[Array, ...]:
    """q [B, H, S, D], k [B, KVH, T, D], v [B, KVH, T, DV] and at most one limit: a mask [B, H, S, T], boolean or added
    to the scores, or the last key that each row sees [B, H, S]; with `window` it sees only so many of those before it. A
    row that sees no key gives zeros, as in torch.

    With `pages`, k and v are pools [P, KVH, R, D] and [P, KVH, R, DV], and a table [B, N] follows, whose numbers may count from
    the end: key t is in row t % R of page table[b, t // R]. A page outside of the pool is moved to its edge.

    With `parts` the blocks of keys are dealt out to them in turn, and the last input [P] numbers the parts wanted. The
    result is then [B, H, S, P, DV + 2] for `attention_merge`: sums of values, and the maximum and sum of the weights.
    """
    q, k, v, *rest = ins
    if pages(node):
        table, *rest = rest
        k, v = (_put_together(pool, table) for pool in (k, v))
    k, v = (x.repeat(q.shape[1] // x.shape[1], axis=1) for x in (k, v))
    keys = np.arange(k.shape[2])
    scores = q @ k.swapaxes(-1, -2) * np.float32(node.number("scale"))
    if len(rest) > (parts(node) > 1):
        scores, v = _limited(scores, v, rest[0], keys, window(node))
    if parts(node) == 1:
        sums, _, total = _weighted(scores, v)
        return (np.where(total == 0, 0, sums / np.where(total == 0, 1, total)),)
    mine = [np.where(keys // BLOCK % parts(node) == part, scores, -np.inf) for part in rest[-1]]
    return (np.stack([np.concatenate(_weighted(s, v), axis=-1) for s in mine], axis=3),)


def _put_together(pool: Array, table: Array) -> Array:
    """[B, KVH, N * R, D]."""
    inside = np.clip(np.where(table < 0, table + len(pool), table), 0, len(pool) - 1)
    found: Array = pool[inside].swapaxes(1, 2)
    return found.reshape(*found.shape[:2], -1, found.shape[-1])


def _weighted(scores: Array, v: Array) -> tuple[Array, Array, Array]:
    """Sums of values by the exponentials of their scores, the highest score, and the sum of the exponentials."""
    top = scores.max(-1, keepdims=True)
    with np.errstate(invalid="ignore"):
        weights = np.exp(scores - np.where(np.isneginf(top), 0, top))
        return weights @ v, top, weights.sum(-1, keepdims=True)


def _limited(scores: Array, v: Array, limit: Array, keys: Array, window: int) -> tuple[Array, Array]:
    """The scores that count, and the values of keys that some row sees: others may be anything, as where a cache is empty."""
    if limit.ndim == 3:
        last = limit[..., None]
        limit = (keys <= last) & (keys > last - window) if window else keys <= last
    hides = limit.dtype == np.bool_
    seen = np.broadcast_to(limit if hides else ~np.isneginf(limit), scores.shape)
    scores = np.where(seen, scores if hides else scores + limit, np.float32(-np.inf))
    somewhere: Array = np.max(seen, axis=-2)  # [B, H, T]
    return scores, np.where(somewhere[..., None], v, np.float32(0))


def tile(node: Node, target: Target) -> Tiling:
    """Batches, then groups of heads that share keys, then parts; more workers take heads apart, or share out rows."""
    q, k, v, *rest = node.inputs
    batch, heads, rows, _ = q.shape
    group = heads // k.shape[1]
    read = 1.0 if not pages(node) else min(1.0, pages(node) / k.shape[0])  # of a pool, for a sequence
    wanted = worthwhile_parts(target, (k.nbytes + v.nbytes) * min(1.0, read * batch), flops(node))
    batches = min(wanted, batch)
    groups = min(-(-wanted // batches), k.shape[1])
    shares = min(-(-wanted // (batches * groups)), parts(node))
    lines = batches * groups * shares
    apart = max(n for n in range(1, group + 1) if group % n == 0 and (n == 1 or lines * n <= wanted))
    row_parts = max(1, min(wanted // (lines * apart), -(-rows // ROWS)))
    tables, rest = (rest[:1], rest[1:]) if pages(node) else ([], rest)
    limits, numbers = (rest, []) if parts(node) == 1 else (rest[:-1], rest[-1:])
    grid = [Axis(batch, batches), Axis(heads, groups * apart, group // apart), Axis(rows, row_parts, ROWS)]
    grid += [Axis(parts(node), shares) for _ in numbers]
    line, keys = (Split(0), Split(1), Split(2)), (None if tables else Split(0), Split(1, share=group), None, None)
    imaps = [TileMap(q, (*line, None)), TileMap(k, keys, read), TileMap(v, keys, read)]
    imaps += [TileMap(table, (Split(0), None)) for table in tables]
    imaps += [TileMap(limit, (*line, None)[: limit.layout.rank]) for limit in limits]
    imaps += [TileMap(number, (Split(3),)) for number in numbers]
    omap = TileMap(node.output, (*line, *(Split(3) for _ in numbers), None))
    return Tiling(tuple(grid), tuple(imaps), (omap,))


def flops(node: Node) -> float:
    q, k, v, *_ = node.inputs
    batch, heads, rows, depth = q.shape
    return 2.0 * batch * heads * rows * k.shape[2] * max(1, pages(node)) * (depth + v.shape[3])


def arguments(node: Node) -> tuple[str, ...]:
    return cpp(Const(node.number("scale"))), str(parts(node)), str(BLOCK), str(window(node)), str(pages(node))


def pages(node: Node) -> int:
    """How many a sequence has, whose keys lie in pages; 0 where keys lie one after the other."""
    return node.integer("pages")


def window(node: Node) -> int:
    """How many keys a row sees, its last among them; 0 when it sees all."""
    return node.integer("window")


def parts(node: Node) -> int:
    """Into how many results the keys are shared out; one is the attention itself."""
    return node.integer("parts")


OP = Op("attention", "Attention", tile, reference, arguments, flops)


# ---- claims


def _attention(
    b: Builder,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,  # the shapes say it
) -> Tensor:
    """The output lies as [B, S, H, D], since what follows an attention joins its heads."""
    if dropout_p > 0:
        raise UnsupportedError("attention with dropout")
    if q.layout.rank not in (3, 4):
        raise UnsupportedError(f"attention over {q.layout.rank} dimensions; 3 or 4 are expected")
    lead = (1,) * (4 - q.layout.rank)
    q, k, v = (x.view(x.layout.expand((*lead, *x.shape))) for x in (q, k, v))
    k, v = _ungrouped(b, k, v)
    batch, heads, rows, depth = q.shape
    if not heads % k.shape[1] == heads % v.shape[1] == k.shape[1] - v.shape[1] == 0:
        raise UnsupportedError(
            f"attention of {heads} heads over {k.shape[1]} heads of keys and {v.shape[1]} of values"
        )
    k, v = (x.view(x.layout.expand((batch, *x.shape[1:]))) for x in (k, v))
    keys = k.shape[2]
    limit, window = _limit(b, attn_mask, is_causal, (batch, heads, rows, keys))
    k, v, *table = _paged(b, k, v)
    inputs = (*(x if x.layout.strides[3] == 1 else b.copy(x) for x in (q, k, v)), *table, *limit)
    out = b.new((batch, rows, heads, v.shape[3]), b.dtype, "attention")
    out = out.view(out.layout.permute((0, 2, 1, 3)))
    scale = float(1 / sqrt(depth) if scale is None else scale)
    count = _worthwhile_parts(q, k.shape[1], keys)
    attrs: dict[str, Attr] = dict(scale=scale, parts=count, window=window, pages=table[0].shape[1] if table else 0)
    if count == 1:
        b.append("attention", inputs, (out,), **attrs)
    else:
        numbers = b.constant(np.arange(count), DType.I32)
        partial = b.new((batch, heads, rows, count, v.shape[3] + 2), DType.F32, "parts")
        b.append("attention", (*inputs, numbers), (partial,), **attrs)
        b.append("attention_merge", (partial,), (out,))
    return out.view(out.layout.squeeze(0)) if lead else out


def _paged(b: Builder, k: Tensor, v: Tensor) -> tuple[Tensor, ...]:
    """Keys and values as they are; or the pools and the table that they were put together from, so that nothing need be."""
    one, other = in_pages(b, k), in_pages(b, v)
    alike = one and other and one.table == other.table and one.pool.shape[:3] == other.pool.shape[:3]
    return (one.pool, other.pool, one.table) if one and other and alike else (k, v)


def _worthwhile_parts(q: Tensor, groups: int, keys: int) -> int:
    """Long rows of keys are shared out when there are too few lines to keep a large machine busy."""
    batch, heads, rows, depth = q.shape
    lines = batch * (groups if rows == 1 else heads * -(-rows // ROWS))
    worthwhile = keys >= MANY_KEYS and depth >= 32  # so that a block is no less than a team looks at together
    return max(1, min(MANY_WORKERS // lines, -(-keys // BLOCK))) if worthwhile else 1


def _ungrouped(b: Builder, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Keys and values as they were before their heads were repeated for the heads of q that share them."""
    before = _unrepeated(b, k), _unrepeated(b, v)
    return before if before[0].shape[1] == before[1].shape[1] else (k, v)


def _unrepeated(b: Builder, x: Tensor) -> Tensor:
    """Repeating is a view, or a copy of [B, KVH, group, T, D] that was seen as [B, KVH * group, T, D]."""
    if x.layout.strides[1] == 0:
        return x.view(x.layout.slice(1, 0, 1))
    copy = maker(b, x, "elementwise")
    if copy is None or copy["expr"] != Arg(0):
        return x
    source, gathered = copy.inputs[0], copy.output
    repeats = source.layout.rank == 5 and source.layout.strides[2] == 0 and source.dtype is x.dtype
    if not repeats or gathered.layout.reshape(x.shape) != x.layout or changed_since(b, copy, source):
        return x
    return source.view(source.layout.select(2, 0))


def _limit(b: Builder, mask: Tensor | None, is_causal: bool, shape: Shape) -> tuple[tuple[Tensor, ...], int]:
    """What each row may see, and its window. A mask made by comparing the keys with a last one is given as that one."""
    if is_causal:
        last = b.constant(np.arange(shape[2]), DType.I64)
        return (last.view(last.layout.expand(shape[:3])),), 0
    if mask is None:
        return (), 0
    mask = mask.view(mask.layout.expand(shape))
    seen = _interval(b, mask)
    if seen is None:
        return (mask,), 0
    last, window = seen
    return (last.view(last.layout.select(3, 0)),), window if window < shape[3] else 0


def _interval(b: Builder, mask: Tensor) -> tuple[Tensor, int] | None:
    """`last` and `window` where the mask says `key <= last`, and perhaps `key > last - window`."""
    bounds = [_bound(b, comparison) for comparison in _conjuncts(b, mask)]
    lasts = {bound.last for bound in bounds if bound}
    if len(lasts) != 1 or not all(bounds):
        return None
    above = [bound.offset for bound in bounds if bound and not bound.is_lower]
    below = [bound.offset for bound in bounds if bound and bound.is_lower]
    if not above or min(above) != 0 or max(below, default=0) > 0:
        return None
    return lasts.pop(), 1 - max(below) if below else 0


def _conjuncts(b: Builder, mask: Tensor) -> list[Tensor]:
    """All that must be true, without what always is."""
    values = _known(b, mask)
    if values is not None and values.all():
        return []
    match _made(b, mask):
        case Call("bit_and" | "logical_and", (Arg(0), Arg(1))), (one, other):
            return [*_conjuncts(b, one), *_conjuncts(b, other)]
    return [mask]


@dataclass(frozen=True, slots=True)
class _Bound:
    """key <= last + offset, or key >= last + offset."""

    last: Tensor
    offset: int
    is_lower: bool


def _bound(b: Builder, comparison: Tensor) -> _Bound | None:
    match _made(b, comparison):
        case Call("le" | "lt" | "ge" | "gt" as fn, (Arg(0), Arg(1))), (left, right):
            one, other = _line(b, left), _line(b, right)
        case _:
            return None
    if one is None or other is None or {one.keys, other.keys} != {0, 1}:
        return None
    line, key, flipped = (other, one, False) if one.keys else (one, other, True)
    if line.last is None or key.last is not None:
        return None
    is_lower = (fn in ("ge", "gt")) != flipped
    strict = (1 if is_lower else -1) * (fn in ("lt", "gt"))
    return _Bound(line.last, line.offset - key.offset + strict, is_lower)


@dataclass(frozen=True, slots=True)
class _Line:
    """keys * key + last + offset."""

    keys: int
    last: Tensor | None
    offset: int


def _line(b: Builder, x: Tensor) -> _Line | None:
    values = _known(b, x)
    if values is not None and _counts(values):
        return _Line(1, None, 0)
    if values is not None and values.size and (values == values.flat[0]).all():
        return _Line(0, None, int(values.flat[0]))
    match _made(b, x):
        case Call("add" | "sub" as fn, (Arg(0), Const(step))), (line,) if found := _line(b, line):
            return replace(found, offset=found.offset + (int(step) if fn == "add" else -int(step)))
    row = x.dtype is DType.I64 and (x.layout.strides[-1] == 0 or x.shape[-1] == 1)
    return _Line(0, x, 0) if row else None


def _made(b: Builder, x: Tensor) -> tuple[Expr, tuple[Tensor, ...]] | None:
    """The expression that x is, and its operands in the shape of x, which nobody has changed since."""
    node = maker(b, x, "elementwise")
    if node is None or any(changed_since(b, node, t) for t in node.inputs):
        return None
    expr = node["expr"]
    assert isinstance(expr, Arg | Call | Const)
    views = [t.view(layout) for t in node.inputs if (layout := _seen_as(x.layout, node.output.layout, t.layout))]
    return (expr, tuple(views)) if len(views) == len(node.inputs) else None


def _seen_as(view: Layout, made: Layout, operand: Layout) -> Layout | None:
    """The operand as `view` sees what was `made` of it, element by element; None where its dimensions are not kept whole."""
    if made.expand(view.shape) == view:
        return operand.expand(view.shape)
    found = {(n, s): step for n, s, step in zip(made.shape, made.strides, operand.strides, strict=True) if n > 1}
    dims = [(n, 0 if n == 1 else s) for n, s in zip(view.shape, view.strides, strict=True)]
    last = dims[-1][1] == 0 or dims[-1] == (made.shape[-1], made.strides[-1])
    if not last or view.offset != made.offset or any(s and (n, s) not in found for n, s in dims):
        return None
    return Layout(view.shape, tuple(found[n, s] if s else 0 for n, s in dims), operand.offset)


def _counts(values: Array) -> bool:
    """True when values[..., i] is i, whatever the other indices."""
    return np.array_equal(values, np.broadcast_to(np.arange(values.shape[-1]), values.shape))


def _known(b: Builder, x: Tensor) -> Array | None:
    """The elements of x when they are made of constants alone."""
    memory = _known_memory(b, x)
    if memory is None:
        return None
    steps = [step * memory.itemsize for step in x.layout.strides]
    return np.lib.stride_tricks.as_strided(memory[x.layout.offset :], x.shape, steps, writeable=False)


def _known_memory(b: Builder, x: Tensor) -> Array | None:
    if x.storage.name in b.constants:
        return x.dtype.decode(b.constants[x.storage.name].reshape(-1))
    made = maker(b, x, "elementwise")
    if made is None or not made.output.layout.is_contiguous:
        return None
    ins = [values for i in made.inputs if (values := _known(b, i)) is not None]
    return elementwise.reference(made, ins)[0].reshape(-1) if len(ins) == len(made.inputs) else None


CLAIMS = {"aten.scaled_dot_product_attention.default": _attention}
