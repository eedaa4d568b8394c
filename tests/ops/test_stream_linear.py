"""stream_linear: one row, as it is, normalised or merged, times weights that stand below or beside each other."""

from typing import Any

import numpy as np
import pytest
from oracle import computed, machine

from mkc.ir.builder import Builder
from mkc.ir.dtype import Array, DType
from mkc.ir.expr import Arg, Call, Expr
from mkc.ir.graph import Graph, Kind, Tensor
from mkc.ir.program import Pack, in_order
from mkc.ops import _streaming, registry
from mkc.ops._streaming import MOST_INPUT, passage_of
from mkc.ops.decode_attention import LINE

RNG = np.random.default_rng(0)
SUM: Expr = Call("add", (Arg(0), Arg(1)))


def rounded(*shape: int) -> Array:
    """Random values that bfloat16 holds."""
    return DType.BF16.rounded(RNG.standard_normal(shape, np.float32))


class Case:
    """A graph of one stream_linear, its values by name, and its run."""

    def __init__(self, **attrs: Any) -> None:
        self.builder = Builder()
        norm = dict(eps=0.0, offset=0.0, centred=False, shifted=False, post_eps=0.0, post_offset=0.0)
        self.attrs = norm | dict(merge=0, weights=1, gated=False, halved=False, abreast=1, best=0, epilogue=Arg(0)) | attrs
        self.values: dict[str, Array] = {}
        self.inputs: list[Tensor] = []

    def given(self, values: Array, dtype: DType = DType.BF16, kind: Kind = Kind.PARAM) -> Array:
        name = f"v{len(self.inputs)}"
        self.inputs.append(self.builder.input(name, values.shape, dtype, kind))
        self.values[name] = values
        return values

    def graph(self, n: int, rows: int = 1) -> Graph:
        out = self.builder.input("y", (rows, n), DType.BF16, Kind.STATE)
        self.builder.append("stream_linear", tuple(self.inputs), (out,), **self.attrs)
        return self.builder.finish(())

    def run(self, n: int, workers: int, rows: int = 1) -> Array:
        return computed(self.graph(n, rows), machine(workers, streams=True), self.values)["y"].reshape(rows, n)


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


@pytest.mark.parametrize("offset", [0.0, 1.0])
def test_the_row_may_be_a_residual_and_a_norm_of_its_own(offset: float) -> None:
    case = Case(eps=1e-3, offset=offset, post_eps=1e-2, post_offset=0.5)
    x, gain, residual, after, w = (case.given(rounded(*shape)) for shape in ((1, 64), (64,), (1, 64), (64,), (16, 64)))
    h = residual + x / np.sqrt(np.mean(x**2) + 1e-2) * (after + 0.5)
    assert_rounded(case.run(16, 3), h / np.sqrt(np.mean(h**2) + 1e-3) * (gain + offset) @ w.T)


@pytest.mark.parametrize("workers", [1, 3, 132])
def test_gated_weights_stand_side_by_side(workers: int) -> None:
    epilogue = Call("add", (Call("mul", (Call("relu", (Arg(0),)), Arg(1))), Arg(2)))
    case = Case(weights=2, gated=True, epilogue=epilogue)
    x, gate, up, residual = (case.given(rounded(*shape)) for shape in ((1, 40), (36, 40), (36, 40), (1, 36)))
    assert_rounded(case.run(36, workers), np.maximum(x @ gate.T, 0) * (x @ up.T) + residual)


@pytest.mark.parametrize("workers", [1, 3, 132])
def test_halves_of_a_row_meet_weights_of_their_own(workers: int) -> None:
    case = Case(weights=2, gated=True, halved=True, epilogue=SUM)
    x, first, second, residual = (case.given(rounded(*shape)) for shape in ((1, 80), (36, 40), (36, 40), (1, 36)))
    assert_rounded(case.run(36, workers), x[:, :40] @ first.T + x[:, 40:] @ second.T + residual)


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
    assert_rounded(case.run(8, 2), DType.BF16.rounded(x) @ w.T)


@pytest.mark.parametrize("rows", [2, 5, 16])
@pytest.mark.parametrize("most", [MOST_INPUT, 0])
def test_several_rows_are_each_ones_own_whether_they_fit_or_come_in_chunks(
    rows: int, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_streaming, "MOST_INPUT", most)
    case = Case(eps=1e-3, weights=2, gated=True, epilogue=Call("add", (Call("mul", (Arg(0), Arg(1))), Arg(2))))
    x, gain = case.given(rounded(rows, 2056)), case.given(rounded(2056))
    gate, up, residual = case.given(rounded(36, 2056)), case.given(rounded(36, 2056)), case.given(rounded(rows, 36))
    normed = x / np.sqrt(np.mean(x**2, axis=1, keepdims=True) + 1e-3) * gain
    np.testing.assert_allclose(case.run(36, 3, rows), (normed @ gate.T) * (normed @ up.T) + residual, rtol=2**-7, atol=0.1)


@pytest.mark.parametrize("batch", range(2, 17))
@pytest.mark.parametrize("outputs", [4, 8])
def test_rows_leave_room_for_a_ring_and_a_thread_for_every_four_outputs(batch: int, outputs: int) -> None:
    for depth in (64, 576, 1024, 1536, 1792, 2560, 3072, 4096, 6144, 8192, 12288, 16384):
        passing = passage_of(batch, depth, outputs)
        assert passing.input_bytes <= MOST_INPUT
        assert 256 * passing.fragments >= depth
        assert any(4 * slots % passing.fragments == 0 or passing.fragments % (4 * slots) == 0 for slots in (2, 3, 4, 5))  # takes no turns
        assert passing.fragments % passing.chunk == 0
        assert batch * passing.group * outputs // 4 <= 128
        if passing.chunk < passing.fragments:
            assert passing.chunk % 4 == 0


@pytest.mark.parametrize(("count", "group"), [(1, 8), (8, 8), (19, 8), (3, 4)])
def test_chunks_pass_all_fragments_of_a_group_of_tiles_before_the_next(count: int, group: int) -> None:
    order = in_order(count, Pack((), False, 24, (), 8, group, 1))
    assert sorted(order) == list(range(count * 24))
    tiles, depths = np.divmod(np.array(order), 24)
    assert (np.diff(tiles // group) >= 0).all()
    for first in range(0, count, group):
        mine = tiles // group == first // group
        assert (np.diff(depths[mine] // 8) >= 0).all()
        assert (np.diff(tiles[mine])[np.diff(depths[mine] // 8) == 0] >= 0).all()


@pytest.mark.parametrize(("workers", "parts"), [(1, 1), (5, 5), (132, 13)])
def test_each_worker_always_does_the_same_share(workers: int, parts: int) -> None:
    case = Case()
    case.given(rounded(1, 40)), case.given(rounded(100, 40))
    (node,) = case.graph(100).nodes
    tiling = registry()["stream_linear"].tile(node, machine(workers))
    assert tiling.pinned
    assert tiling.size == parts
    assert all(lo % 8 == 0 for ((lo, _),) in tiling.ranges())
