"""stream_linear: one row, as it is, normalised or merged, times weights that stand below or beside each other."""

from typing import Any

import numpy as np
import pytest
from oracle import computed, machine

from mkc.ir.builder import Builder
from mkc.ir.dtype import Array, DType
from mkc.ir.expr import Arg, Call, Expr
from mkc.ir.graph import Graph, Kind, Tensor
from mkc.ops import registry
from mkc.ops.decode_attention import LINE

RNG = np.random.default_rng(0)
SUM: Expr = Call("add", (Arg(0), Arg(1)))


def rounded(*shape: int) -> Array:
    """Random values that bfloat16 holds."""
    return DType.BF16.decode(DType.BF16.encode(RNG.standard_normal(shape, np.float32)))


class Case:
    """A graph of one stream_linear, its values by name, and its run."""

    def __init__(self, **attrs: Any) -> None:
        self.builder = Builder()
        norm = dict(eps=0.0, offset=0.0, centred=False, shifted=False)
        self.attrs = norm | dict(merge=0, weights=1, gated=False, best=0, epilogue=Arg(0)) | attrs
        self.values: dict[str, Array] = {}
        self.inputs: list[Tensor] = []

    def given(self, values: Array, dtype: DType = DType.BF16, kind: Kind = Kind.PARAM) -> Array:
        name = f"v{len(self.inputs)}"
        self.inputs.append(self.builder.input(name, values.shape, dtype, kind))
        self.values[name] = values
        return values

    def graph(self, n: int) -> Graph:
        out = self.builder.input("y", (1, n), DType.BF16, Kind.STATE)
        self.builder.append("stream_linear", tuple(self.inputs), (out,), **self.attrs)
        return self.builder.finish(())

    def run(self, n: int, workers: int) -> Array:
        return computed(self.graph(n), machine(workers, streams=True), self.values)["y"].reshape(1, n)


def assert_rounded(got: Array, exact: Array) -> None:
    """Off by a rounding to bfloat16 at most."""
    np.testing.assert_allclose(got, exact, rtol=2**-8, atol=2**-8)


@pytest.mark.parametrize("workers", [1, 5, 132])
@pytest.mark.parametrize("rows", [(24,), (20, 12, 4), (64, 8, 8)])
def test_weights_stand_one_below_the_other(workers: int, rows: tuple[int, ...]) -> None:
    case = Case(weights=len(rows), epilogue=SUM)
    x, weights = case.given(rounded(1, 40)), [case.given(rounded(n, 40)) for n in rows]
    pieces = [case.given(rounded(1, n)) for n in rows]
    assert_rounded(case.run(sum(rows), workers), x @ np.concatenate(weights).T + np.concatenate(pieces, axis=1))


@pytest.mark.parametrize("workers", [1, 5])
def test_the_last_outputs_may_be_fewer_than_a_word(workers: int) -> None:
    case = Case(epilogue=SUM)
    x, w, bias = case.given(rounded(1, 40)), case.given(rounded(51, 40)), case.given(rounded(1, 51))
    assert_rounded(case.run(51, workers), x @ w.T + bias)


def test_the_row_is_normalised_and_scaled() -> None:
    case = Case(eps=1e-3)
    x, gain, w = case.given(rounded(1, 64)), case.given(rounded(64)), case.given(rounded(16, 64))
    assert_rounded(case.run(16, 3), x / np.sqrt(np.mean(x**2) + 1e-3) * gain @ w.T)


@pytest.mark.parametrize("shifted", [False, True])
def test_a_norm_may_take_the_mean_away_and_add_to_its_gain(shifted: bool) -> None:
    case = Case(eps=1e-3, offset=1.0, centred=True, shifted=shifted)
    x, gain = case.given(np.abs(rounded(1, 64))), case.given(rounded(64))
    shift = case.given(rounded(64)) if shifted else np.zeros(64)
    w = case.given(rounded(16, 64))
    assert_rounded(case.run(16, 3), ((x - x.mean()) / np.sqrt(x.var() + 1e-3) * (1 + gain) + shift) @ w.T)


@pytest.mark.parametrize("workers", [1, 3, 132])
def test_gated_weights_stand_side_by_side(workers: int) -> None:
    epilogue = Call("add", (Call("mul", (Call("relu", (Arg(0),)), Arg(1))), Arg(2)))
    case = Case(weights=2, gated=True, epilogue=epilogue)
    x, gate, up, residual = (case.given(rounded(*shape)) for shape in ((1, 40), (36, 40), (36, 40), (1, 36)))
    assert_rounded(case.run(36, workers), np.maximum(x @ gate.T, 0) * (x @ up.T) + residual)


def test_parts_of_an_attention_are_merged_by_what_their_keys_weigh() -> None:
    case = Case(merge=3)
    parts = case.given(rounded(3, 4, 16))
    lse = np.array([[3, -200, 0, -np.inf], [1, 5, 0, -np.inf], [-np.inf] * 4], np.float32)
    case.given(np.repeat(lse[..., None], LINE, axis=2), DType.F32)
    case.given(np.array([70]), DType.I64, Kind.INPUT)
    w = case.given(rounded(8, 64))
    weights = np.exp2(lse - np.array([3, 5, 0, 0], np.float32))
    weights /= np.maximum(weights.sum(axis=0), 2.0**-30)
    x = (weights[..., None] * parts).sum(axis=0).reshape(1, 64)
    assert (x[0, 48:] == 0).all()
    assert_rounded(case.run(8, 2), DType.BF16.decode(DType.BF16.encode(x)) @ w.T)


@pytest.mark.parametrize(("workers", "parts"), [(1, 1), (5, 5), (132, 13)])
def test_each_worker_always_does_the_same_share(workers: int, parts: int) -> None:
    case = Case()
    case.given(rounded(1, 40)), case.given(rounded(100, 40))
    (node,) = case.graph(100).nodes
    tiling = registry()["stream_linear"].tile(node, machine(workers))
    assert tiling.pinned
    assert tiling.size == parts
    assert all(lo % 8 == 0 for ((lo, _),) in tiling.ranges())
