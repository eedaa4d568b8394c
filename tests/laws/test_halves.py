"""passes/_stream_halves: where tiles are few, they become twice as many, if then the worker that reads most reads less."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from oracle import machine

from mkc.ir.builder import Builder
from mkc.ir.dtype import DType
from mkc.ir.expr import Arg
from mkc.ir.graph import Graph, Kind, Node
from mkc.ops.stream_linear import abreast, most_read
from mkc.passes._stream_halves import halve

PLAIN = dict(
    eps=0.0, offset=0.0, centred=False, shifted=False, post_eps=0.0, post_offset=0.0, merge=0, weights=1, gated=False, halved=False,
    abreast=1, best=0, epilogue=Arg(0),
)  # fmt: skip


def product(n: int, depth: int, rows: int = 1, **attrs: Any) -> Graph:
    b = Builder()
    x, w = b.input("x", (rows, depth), DType.BF16, Kind.INPUT), b.input("w", (n, depth), DType.BF16, Kind.PARAM)
    gain = [b.input("gain", (depth,), DType.BF16, Kind.PARAM)] if attrs.get("eps") else []
    b.append("stream_linear", (x, *gain, w), (b.input("y", (rows, n), DType.BF16, Kind.STATE),), **(PLAIN | attrs))
    return b.finish(())


def halved(graph: Graph, workers: int) -> Node:
    (node,) = halve(graph, machine(workers, streams=True)).nodes
    return node


@pytest.mark.parametrize(("n", "depth", "before", "after"), [(1152, 6912, 56, 42), (1536, 8960, 72, 54)])
def test_workers_with_two_tiles_of_few_get_three_halves(n: int, depth: int, before: int, after: int) -> None:
    target, (whole,) = machine(132, streams=True), product(n, depth).nodes
    assert most_read(whole, target)[0] == before
    assert most_read(halved(product(n, depth), 132), target)[0] == after


@given(st.integers(1, 800), st.integers(1, 800), st.integers(1, 170))
def test_halves_never_cost_a_byte(words: int, eighths: int, workers: int) -> None:
    target, (node,) = machine(workers, streams=True), product(4 * words, 16 * eighths).nodes
    node = node.with_attrs(abreast=abreast(node, target))
    graph = product(4 * words, 16 * eighths, abreast=node["abreast"])
    most, together = most_read(halved(graph, workers), target)
    assert most <= most_read(node, target)[0]
    assert together <= most_read(node, target)[1]


def test_both_halves_are_of_the_weight_that_was_whole() -> None:
    first, second = halved(product(1152, 6912), 132).inputs[1:]
    assert first.storage == second.storage
    assert [(t.shape, t.layout.strides, t.layout.offset) for t in (first, second)] == [((1152, 3456), (6912, 1), at) for at in (0, 3456)]


@pytest.mark.parametrize(
    "change",
    [dict(eps=1e-6), dict(rows=2), dict(best=16), dict(n=1056), dict(depth=256), dict(n=1154), dict(depth=6920)],
)
def test_what_is_not_a_row_as_it_is_or_comes_out_even_stays_whole(change: dict[str, Any]) -> None:
    assert not halved(product(**(dict(n=1152, depth=6912) | change)), 132)["halved"]
