"""seed -> nn.Module. Ordinary calls strung together at random: forks, joins, views, residuals, odd widths."""

from collections.abc import Callable
from copy import deepcopy
from functools import partial
from random import Random
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mkc.ops import claims

WIDTHS = (1, 3, 7, 30, 64, 100, 130, 250)
ROWS = (1, 2, 3, 5)
LARGEST = 8192  # elements of a value

Values = list[Tensor]
Step = tuple[Callable[..., Any], tuple[int, ...]]  # a call and the numbers of the values it takes
Move = Callable[[Random, Values], Step | None]  # None: nothing to do this with
MOVES: list[Move] = []


class RandomModel(nn.Module):
    """A graph of `size` calls on two inputs; values that nobody reads are its results."""

    dtypes: tuple[torch.dtype, ...] = (torch.float32, torch.float32, torch.bfloat16, torch.float16)

    def __init__(self, seed: int, size: int | None = None) -> None:
        super().__init__()
        rng = Random(seed)
        torch.manual_seed(seed)
        rows, width = rng.choice(ROWS), rng.choice(WIDTHS[3:])
        self.example_inputs = (torch.randn(rows, width), torch.randn(rng.choice((rows, 1)), width))
        self.layers = nn.ModuleList()
        self.steps: list[Step] = []
        self.pieces: list[int | None] = []  # of each call: how many values it gives, or None for one that is no tuple
        self.results: tuple[int, ...] = ()
        self._grow(rng, size or rng.randint(3, 14))
        self.eval().requires_grad_(False)
        self._cast(rng.choice(self.dtypes))

    def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, ...]:
        values = [x, y]
        for (call, operands), pieces in zip(self.steps, self.pieces, strict=True):
            made = call(*(values[i] for i in operands))
            values += [made] if pieces is None else [made[i] for i in range(pieces)]
        return tuple(values[i] for i in self.results)

    @torch.no_grad()
    def _grow(self, rng: Random, size: int) -> None:
        values: Values = list(self.example_inputs)
        while len(self.steps) < size:
            step = rng.choice(MOVES)(rng, values)
            if step is None:
                continue
            call, operands = step
            result = call(*(values[i] for i in operands))
            pieces = len(result) if isinstance(result, tuple | list) else None
            made = [result] if pieces is None else list(result)
            if all(0 < v.numel() <= LARGEST and v.dim() <= 4 for v in made):
                values += made
                self.steps.append(step)
                self.pieces.append(pieces)
                self.layers += [call] if isinstance(call, nn.Module) else []
        read = {i for _, operands in self.steps for i in operands}
        unread = [i for i in range(2, len(values)) if i not in read]
        self.results = (*unread[-4:], rng.randrange(2, len(values)))

    def _cast(self, dtype: torch.dtype) -> None:
        x, y = self.example_inputs
        self.to(dtype).example_inputs = (x.to(dtype), y.to(dtype))

    def __str__(self) -> str:
        lines = [f"{name} = {tuple(x.shape)}" for name, x in zip(("v0", "v1"), self.example_inputs, strict=True)]
        for call, operands in self.steps:
            lines.append(f"{getattr(call, '__name__', call)}({', '.join(f'v{i}' for i in operands)})")
        return "\n".join([*lines, f"return {self.results}"])


def needs(*names: str) -> Callable[[Move], Move]:
    """A move made only when operators claim all these calls."""

    def add(move: Move) -> Move:
        if all(f"aten.{name}" in claims() for name in names):
            MOVES.append(move)
        return move

    return add


def pick(rng: Random, values: Values, allowed: Callable[[Tensor], bool] = lambda v: True) -> int | None:
    """A value, recent ones more often, so that graphs grow deep as well as wide."""
    found = [i for i, v in enumerate(values) if allowed(v)]
    return rng.choice(found[-rng.choice((2, 5, len(found))) :]) if found else None


def named(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
    call.__name__ = name
    return call


def of_one(name: str, allowed: Callable[[Tensor], bool], call: Callable[[Random, Tensor], Callable[..., Any]]) -> Move:
    """A move on one value; `call` sees it to choose its arguments."""

    def move(rng: Random, values: Values) -> Step | None:
        i = pick(rng, values, allowed)
        return None if i is None else (named(name, call(rng, values[i])), (i,))

    return move


def deep(v: Tensor) -> bool:
    return v.dim() >= 1


def flat(v: Tensor) -> bool:
    return v.dim() >= 2


# ---- operators


@needs("linear.default")
def linear(rng: Random, values: Values) -> Step | None:
    i = pick(rng, values, deep)
    return None if i is None else (nn.Linear(values[i].shape[-1], rng.choice(WIDTHS), bias=rng.random() < 0.7), (i,))


@needs("linear.default", "add.Tensor")
def residual_block(rng: Random, values: Values) -> Step | None:
    """y = W u + f(u): u is read whole by one and tile by tile by the other."""
    i = pick(rng, values, deep)
    return None if i is None else (_Residual(values[i].shape[-1], rng.choice(WIDTHS)), (i,))


class _Residual(nn.Module):
    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(width, inner), nn.Linear(inner, width)

    def forward(self, x: Tensor) -> Tensor:
        made: Tensor = torch.sin(x) + self.down(F.gelu(self.up(x)))
        return made


UNARY = (torch.sin, torch.tanh, torch.sigmoid, torch.relu, torch.neg, F.silu, F.gelu, torch.abs)
for _fn in UNARY:
    needs(f"{_fn.__name__}.default")(of_one(_fn.__name__, lambda v: True, lambda *_, fn=_fn: partial(fn)))


def _scalar(rng: Random, v: Tensor) -> Callable[[Tensor], Tensor]:
    a, b = rng.choice((0.5, -1.25, 2)), rng.choice((0.125, -3, 1))
    return lambda x: x * a + b


needs("mul.Tensor", "add.Tensor")(of_one("scale_and_shift", lambda v: True, _scalar))


def _broadcasts(a: Tensor, b: Tensor) -> bool:
    pairs = zip(reversed(a.shape), reversed(b.shape), strict=False)
    return all(m == n or 1 in (m, n) for m, n in pairs)


def join(call: Callable[..., Tensor]) -> Move:
    def move(rng: Random, values: Values) -> Step | None:
        i = pick(rng, values)
        assert i is not None
        j = pick(rng, values, lambda v: _broadcasts(values[i], v))
        return None if j is None else (call, (i, j) if rng.random() < 0.5 else (j, i))

    return move


for _name in ("add", "sub", "mul", "maximum"):
    kind = "default" if _name == "maximum" else "Tensor"
    for _ in range(2):
        needs(f"{_name}.{kind}")(join(getattr(torch, _name)))
needs("gt.Tensor", "where.self")(join(named("greater", lambda a, b: torch.where(a > b, a, b))))


@needs("matmul.default")
def matmul(rng: Random, values: Values) -> Step | None:
    i = pick(rng, values, lambda v: v.dim() == 2)
    if i is None:
        return None
    j = pick(rng, values, lambda v: v.dim() == 2 and values[i].shape[1] in v.shape)
    if j is None:
        return None
    turned = values[j].shape[0] != values[i].shape[1]
    scale = values[i].shape[1] ** -0.5
    return named("matmul", lambda a, b: (a @ (b.T if turned else b)) * scale), (i, j)


def _batched(rng: Random, v: Tensor) -> Callable[[Tensor], Tensor]:
    scale = v.shape[-1] ** -0.5
    return lambda x: (x @ x.transpose(-1, -2)) * scale


needs("matmul.default")(of_one("batched_matmul", lambda v: v.dim() >= 3, _batched))


@needs("argmax.default", "embedding.default")
def lookup(rng: Random, values: Values) -> Step | None:
    """Only of an input, where nothing is rounded: a near tie would make any answer right."""
    return _Lookup(values[0].shape[1], rng.choice(WIDTHS)), (0,)


class _Lookup(nn.Module):
    def __init__(self, count: int, width: int) -> None:
        super().__init__()
        self.table = nn.Embedding(count, width)

    def forward(self, x: Tensor) -> Tensor:
        made: Tensor = self.table(x.argmax(-1))
        return made


# ---- norms and reductions


def _dim(rng: Random, v: Tensor) -> int:
    return rng.randrange(-v.dim(), v.dim())


@needs("layer_norm.default")
def layer_norm(rng: Random, values: Values) -> Step | None:
    i = pick(rng, values, flat)
    return None if i is None else (nn.LayerNorm(values[i].shape[-1], eps=0.1), (i,))


@needs("rms_norm.default")
def rms_norm(rng: Random, values: Values) -> Step | None:
    i = pick(rng, values, flat)
    return None if i is None else (nn.RMSNorm(values[i].shape[-1], eps=0.1), (i,))


def _softmax(rng: Random, v: Tensor) -> Callable[[Tensor], Tensor]:
    return partial(torch.softmax, dim=_dim(rng, v))


needs("softmax.int")(of_one("softmax", deep, _softmax))


def _reduction(fn: Callable[..., Tensor]) -> Callable[[Random, Tensor], Callable[[Tensor], Tensor]]:
    def chosen(rng: Random, v: Tensor) -> Callable[[Tensor], Tensor]:
        return partial(fn, dim=_dim(rng, v), keepdim=rng.random() < 0.7)

    return chosen


needs("mean.dim")(of_one("mean", deep, _reduction(torch.mean)))
needs("amax.default")(of_one("amax", deep, _reduction(torch.amax)))
needs("sum.dim_IntList", "mul.Tensor")(
    of_one("scaled_sum", deep, _reduction(lambda x, dim, keepdim: (x * 0.1).sum(dim, keepdim)))
)


@needs("scaled_dot_product_attention.default")
def attention(rng: Random, values: Values) -> Step | None:
    """Queries, keys and values of 2 heads from one value; causal or not."""
    i = pick(rng, values, lambda v: v.dim() == 2 and v.shape[1] % 10 == 0)
    if i is None:
        return None
    causal, heads = rng.random() < 0.5, rng.choice((1, 2, 5))
    width = values[i].shape[1] // heads

    def call(x: Tensor) -> Tensor:
        q = x.reshape(1, x.shape[0], heads, width).transpose(1, 2)
        return F.scaled_dot_product_attention(q, q, torch.sin(q), is_causal=causal).transpose(1, 2).reshape(x.shape)

    return named("attention", call), (i,)


# ---- views and copies


def _slice(rng: Random, v: Tensor) -> Callable[[Tensor], Tensor]:
    dim = rng.randrange(v.dim())
    lo = rng.randrange(v.shape[dim])
    hi, step = rng.randint(lo + 1, v.shape[dim]), rng.choice((1, 1, 2, 3))
    index = (slice(None),) * dim + (slice(lo, hi, step),)
    return lambda x: x[index]


def _chunk(rng: Random, v: Tensor) -> Callable[[Tensor], tuple[Tensor, ...]]:
    return partial(torch.chunk, chunks=rng.choice((2, 3, 4)), dim=_dim(rng, v))


def _transpose(rng: Random, v: Tensor) -> Callable[[Tensor], Tensor]:
    return partial(torch.transpose, dim0=_dim(rng, v), dim1=_dim(rng, v))


def _reshape(rng: Random, v: Tensor) -> Callable[[Tensor], Tensor]:
    factors = [n for n in range(1, v.numel() + 1) if v.numel() % n == 0]
    first = rng.choice(factors)
    return partial(torch.reshape, shape=(first, v.numel() // first))


def _unsqueeze(rng: Random, v: Tensor) -> Callable[[Tensor], Tensor]:
    return partial(torch.unsqueeze, dim=rng.randrange(v.dim() + 1))


def _repeat(rng: Random, v: Tensor) -> Callable[[Tensor], Tensor]:
    shape = (rng.choice((2, 3)), *v.shape)
    return lambda x: x.expand(shape)


needs("slice.Tensor")(of_one("slice", deep, _slice))
needs("chunk.default")(of_one("chunk", deep, _chunk))
needs("transpose.int")(of_one("transpose", flat, _transpose))
needs("reshape.default")(of_one("reshape", deep, _reshape))
needs("unsqueeze.default")(of_one("unsqueeze", lambda v: v.dim() < 4, _unsqueeze))
needs("expand.default")(of_one("expand", lambda v: v.dim() < 3, _repeat))


@needs("cat.default")
def cat(rng: Random, values: Values) -> Step | None:
    i = pick(rng, values, deep)
    if i is None:
        return None
    dim = rng.randrange(values[i].dim())

    def apart_from_dim(v: Tensor) -> tuple[int, ...]:
        return (*v.shape[:dim], -1, *v.shape[dim + 1 :])

    def fits(v: Tensor) -> bool:
        return apart_from_dim(v) == apart_from_dim(values[i])

    others = [j for j in (pick(rng, values, fits) for _ in range(rng.randint(1, 3))) if j is not None]
    return named("cat", lambda *parts: torch.cat(parts, dim)), (i, *others)


@needs("stack.default")
def stack(rng: Random, values: Values) -> Step | None:
    i = pick(rng, values, lambda v: 1 <= v.dim() < 4)
    j = None if i is None else pick(rng, values, lambda v: v.shape == values[i].shape)
    return None if i is None or j is None else (named("stack", lambda *parts: torch.stack(parts, 1)), (i, j))


# ---- writing in place


def _shift(rng: Random, v: Tensor) -> Callable[[Tensor], Tensor]:
    """A slice is overwritten by another of the same tensor that overlaps it."""
    dim = rng.randrange(v.dim())
    by = rng.randint(1, max(1, v.shape[dim] - 1))

    def call(x: Tensor) -> Tensor:
        y = x.clone()
        y.narrow(dim, by, y.shape[dim] - by).copy_(y.narrow(dim, 0, y.shape[dim] - by).clone())
        return y * 0.5 + x

    return call


needs("slice_scatter.default")(of_one("shift", lambda v: flat(v) and min(v.shape) > 1, _shift))


def _row(rng: Random, v: Tensor) -> Callable[[Tensor], Tensor]:
    i, j = rng.randrange(v.shape[0]), rng.randrange(v.shape[0])

    def call(x: Tensor) -> Tensor:
        y = torch.sin(x)
        y[i] = x[j]
        y[j] += 1
        return y

    return call


needs("select_scatter.default")(of_one("row", flat, _row))


# ---- what is expected


def assert_like_pytorch(model: RandomModel, results: tuple[Tensor, ...]) -> None:
    """No further from the exact result than ten times as far as eager PyTorch."""
    with torch.no_grad():
        eager = model(*model.example_inputs)
        exact = deepcopy(model).double()(*(x.double() for x in model.example_inputs))
    for number, (ours, theirs, truth) in enumerate(zip(results, eager, exact, strict=True)):
        assert (ours.shape, ours.dtype) == (theirs.shape, theirs.dtype)
        allowed = 10 * (theirs - truth).abs().max() + 50 * torch.finfo(ours.dtype).eps * (1 + truth.abs().max())
        off = (ours - truth).abs().max()
        assert off <= allowed, f"result {number} is off by {off:.2g} where {allowed:.2g} is allowed:\n{model}"


class RandomLoop(RandomModel):
    """A random model with a state that every run reads and replaces, so that many steps can run in one launch."""

    state: Tensor
    dtypes = (torch.float32,)

    def __init__(self, seed: int, size: int | None = None) -> None:
        super().__init__(seed, size)
        with torch.no_grad():
            results = super().forward(*self.example_inputs)
        self.register_buffer("state", torch.randn_like(self.example_inputs[0]))
        self.turn = nn.Linear(results[0].numel(), self.state.numel()).requires_grad_(False)
        self.change = Random(seed).choice(("replace", "shift", "column", "scale"))

    def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, ...]:
        before = self.state.clone()
        results = super().forward(torch.tanh(x + self.state), y)
        turned = torch.tanh(self.turn(results[0].reshape(1, -1))).reshape(self.state.shape)
        match self.change:
            case "replace":
                self.state.copy_(turned)
            case "shift":
                self.state[:, 1:] = self.state[:, :-1].clone()
                self.state[:, 0] = turned[:, 0]
            case "column":
                self.state[:, 5] = turned[:, 3]
            case "scale":
                self.state.mul_(0.5).add_(turned)
        return (*results, before, self.state * 2)
