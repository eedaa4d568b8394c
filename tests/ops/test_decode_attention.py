"""decode_attention: what its splits say together is what torch says about all keys up to the position."""

from random import Random
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from oracle import computed, machine

from mkc.ir.builder import Builder
from mkc.ir.dtype import Array, DType
from mkc.ir.graph import Graph, Kind
from mkc.ops.decode_attention import LINE

RNG = np.random.default_rng(0)
EPS = 1e-3
Values = dict[str, Array]


def rounded(*shape: int) -> Array:
    """Random values that bfloat16 holds."""
    return DType.BF16.rounded(RNG.standard_normal(shape, np.float32))


def given(heads: int, groups: int, depth: int, room: int, position: int, turned: int = 0) -> Values:
    shapes = dict(q=(heads, depth), k=(groups, depth), v=(groups, depth), keys=(groups, room, depth), values=(groups, room, depth))
    tables = dict.fromkeys(("q_gain", "k_gain"), (depth,)) | dict.fromkeys(("cos", "sin"), (turned or depth,))
    return {name: rounded(*shape) for name, shape in (shapes | tables).items()} | {"position": np.array([position])}


def graph(values: Values, splits: int, normed: bool, turned: bool, **more: Any) -> Graph:
    b = Builder()
    names = "q k v position keys values".split() + ["q_gain", "k_gain"] * normed + ["cos", "sin"] * turned
    kinds = {"keys": Kind.STATE, "values": Kind.STATE}
    inputs = {
        name: b.input(name, values[name].shape, DType.I64 if name == "position" else DType.BF16, kinds.get(name, Kind.INPUT))
        for name in names
    }
    parts = b.input("parts", (splits, *values["q"].shape), DType.BF16, Kind.STATE)
    lse = b.input("lse", (splits, *values["q"].shape[:-1], LINE), DType.F32, Kind.STATE)
    outputs = (parts, lse, inputs["keys"], inputs["values"])
    attrs: dict[str, Any] = dict(scale=0.25, eps=EPS if normed else 0.0, offset=0.0, splits=splits, window=0, pages=0) | more
    attrs["rotary"] = len(values["cos"]) if turned else 0
    b.append("decode_attention", tuple(inputs.values()), outputs, **attrs)
    return b.finish(())


def bfloat16(x: torch.Tensor) -> torch.Tensor:
    return x.to(torch.bfloat16).double()


def expected(
    values: Values, normed: bool, turned: bool, offset: float = 0.0, window: int = 0
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The attention [H, D] and both caches, as torch has them in float64."""
    t = {name: torch.from_numpy(x.copy()) for name, x in values.items()}
    t = {name: x.double() if x.is_floating_point() else x for name, x in t.items()}
    q, k, position = t["q"], t["k"], int(t["position"])
    if normed:
        q, k = (bfloat16(F.rms_norm(x, x.shape[-1:], t[gain] + offset, EPS)) for x, gain in ((q, "q_gain"), (k, "k_gain")))
    if turned:
        q, k = (rotated(x, t["cos"], t["sin"]) for x in (q, k))
    if 0 <= position < t["keys"].shape[1]:
        t["keys"][:, position], t["values"][:, position] = k, t["v"]
    end = max(position, -1) + 1
    seen = (x[None, :, max(0, end - window) if window else 0 : end] for x in (t["keys"], t["values"]))
    out = F.scaled_dot_product_attention(q[None, :, None], *seen, scale=0.25, enable_gqa=True)
    return out[0, :, 0], t["keys"], t["values"]


def rotated(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    x, rest = x.split([len(cos), x.shape[-1] - len(cos)], -1)
    a, b = x.chunk(2, -1)
    return torch.cat([bfloat16(x * cos + torch.cat([-b, a], -1) * sin), rest], -1)


def merged(parts: Array, lse: Array) -> Array:
    weights = np.exp2(lse - lse.max(axis=0))
    return ((weights / weights.sum(axis=0))[..., None] * parts).sum(axis=0)


def agree(values: Values, splits: int, normed: bool, turned: bool, **more: Any) -> None:
    heads, depth = values["q"].shape
    got = computed(graph(values, splits, normed, turned, **more), machine(7, streams=True), values, Random(splits))
    out, keys, cached = expected(values, normed, turned, **more)
    parts, lse = got["parts"].reshape(splits, heads, depth), got["lse"].reshape(splits, heads, LINE)
    assert (lse == lse[..., :1]).all()
    lse = lse[..., 0]
    np.testing.assert_allclose(merged(parts, lse), out, rtol=2**-6, atol=2**-6)
    for mine, theirs in (("keys", keys), ("values", cached)):
        np.testing.assert_allclose(got[mine].reshape(theirs.shape), theirs, rtol=2**-7, atol=2**-8)


@pytest.mark.parametrize("position", [0, 1, 63, 64, 130, 199])
@pytest.mark.parametrize(("splits", "heads", "groups", "depth"), [(1, 2, 2, 64), (3, 4, 2, 64), (4, 8, 1, 96)])
def test_splits_together_give_the_attention_of_all_keys(
    position: int, splits: int, heads: int, groups: int, depth: int
) -> None:
    agree(given(heads, groups, depth, 200, position), splits, normed=True, turned=True)


def together(each: list[Values]) -> Values:
    """Sequences side by side; they share the gains, as layers do."""
    alone = {name: each[0][name] for name in ("q_gain", "k_gain")}
    several = {name: np.stack([values[name] for values in each]) for name in each[0] if name not in alone}
    return several | alone | {"position": np.concatenate([values["position"] for values in each])}


@pytest.mark.parametrize(("normed", "turned"), [(True, True), (False, True), (True, False)])
def test_sequences_attend_to_their_own_keys_up_to_positions_of_their_own(normed: bool, turned: bool) -> None:
    values = together([given(4, 2, 64, 200, position) for position in (130, 0, 63)])
    got = computed(graph(values, 2, normed, turned), machine(7, streams=True), values, Random(1))
    for row in range(3):
        alone = {name: x if name in ("q_gain", "k_gain") else x[row] for name, x in values.items()}
        alone["position"] = values["position"][row : row + 1]
        out, keys, cached = expected(alone, normed, turned)
        parts, lse = got["parts"].reshape(2, 3, 4, 64)[:, row], got["lse"].reshape(2, 3, 4, LINE)[:, row, :, 0]
        np.testing.assert_allclose(merged(parts, lse), out, rtol=2**-6, atol=2**-6)
        for mine, theirs in (("keys", keys), ("values", cached)):
            np.testing.assert_allclose(got[mine].reshape(3, *theirs.shape)[row], theirs, rtol=2**-7, atol=2**-8)


@pytest.mark.parametrize(("normed", "turned"), [(False, False), (True, False), (False, True)])
def test_norms_and_rotation_may_be_missing(normed: bool, turned: bool) -> None:
    agree(given(4, 2, 64, 100, 77), 2, normed, turned)


@pytest.mark.parametrize("position", [0, 39, 40, 63, 64, 130, 199])
@pytest.mark.parametrize("window", [1, 40, 130])
def test_a_window_hides_the_keys_before_it(position: int, window: int) -> None:
    agree(given(4, 2, 64, 200, position), 3, normed=True, turned=True, window=window)


def test_some_dims_are_turned_and_gains_are_added_to_one() -> None:
    agree(given(4, 2, 80, 100, 77, turned=32), 2, normed=True, turned=True, offset=1.0)


@pytest.mark.parametrize("heads", [12, 9, 16, 32])
def test_many_heads_of_queries_share_keys(heads: int) -> None:
    agree(given(heads, 1, 32, 100, 77), 2, normed=True, turned=True)


def test_a_split_without_keys_gives_zeros_that_weigh_nothing() -> None:
    values = given(4, 2, 64, 200, 70)
    got = computed(graph(values, 3, True, True), machine(7, streams=True), values)
    assert (got["parts"].reshape(3, -1)[2] == 0).all()
    assert np.isneginf(got["lse"].reshape(3, -1)[2]).all()


@pytest.mark.parametrize("position", [-1, 200, 10**9])
def test_nothing_is_written_outside_of_the_cache(position: int) -> None:
    values = given(4, 2, 64, 200, position)
    got = computed(graph(values, 3, True, True), machine(7, streams=True), values)
    assert (got["keys"] == values["keys"].reshape(-1)).all()
    assert (got["values"] == values["values"].reshape(-1)).all()
    assert np.isneginf(got["lse"]).all() == (position < 0)
