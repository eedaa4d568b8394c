"""Every operator on every machine: its tasks cover each output exactly once and stay inside what they read."""

from functools import cache

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from oracle import machine, raised
from random_graphs.models import RandomModel

from mkc.ir.dtype import DType
from mkc.ir.graph import Node, Tensor
from mkc.ir.program import MAX_AXES
from mkc.ir.tiling import Tiling
from mkc.ops import registry
from mkc.passes.fuse import fuse

machines = st.builds(machine, st.integers(1, 264), st.sampled_from((0.01, 1.0, 20.0, 1000.0)))


@cache
def nodes() -> dict[str, list[Node]]:
    """Nodes of some large random models, before and after they are fused, by operator."""
    found: dict[str, list[Node]] = {}
    for seed in range(25):
        model = RandomModel(seed, size=30)
        graph = raised(model, *model.example_inputs).graph
        for node in (*graph.nodes, *fuse(graph).nodes):
            found.setdefault(node.op, []).append(node)
    return found


@cache
def elements(tensor: Tensor) -> np.ndarray:
    """Where in its storage, sorted."""
    places = np.full(tensor.shape, tensor.layout.offset)
    for indices, stride in zip(np.indices(tensor.shape, sparse=True), tensor.layout.strides, strict=True):
        places = places + indices * stride
    return np.unique(places)


def tiled(data: st.DataObject) -> tuple[Node, Tiling]:
    op = data.draw(st.sampled_from(sorted(nodes())))
    node = data.draw(st.sampled_from(nodes()[op]))
    return node, registry()[op].tile(node, data.draw(machines))


@given(st.data())
def test_omaps_cover_every_output_exactly_once(data: st.DataObject) -> None:
    node, tiling = tiled(data)
    for output, tile_map in zip(node.outputs, tiling.omaps, strict=True):
        times = np.zeros(tile_map.tensor.shape, int)
        for ranges in tiling.ranges():
            times[tuple(slice(*interval) for interval in tile_map.at(ranges))] += 1
        assert (times == 1).all()
        assert tile_map.tensor.storage == output.storage
        assert np.array_equal(elements(tile_map.tensor), elements(output))


@given(st.data())
def test_imaps_stay_inside_what_the_operator_reads(data: st.DataObject) -> None:
    node, tiling = tiled(data)
    assert len(tiling.grid) <= MAX_AXES
    for tile_map in tiling.imaps:
        read = elements(tile_map.tensor)
        assert any(t.storage == tile_map.tensor.storage and np.isin(read, elements(t)).all() for t in node.inputs)
        for ranges in tiling.ranges():
            box = zip(tile_map.at(ranges), tile_map.tensor.shape, strict=True)
            assert all(0 <= lo < hi <= extent for (lo, hi), extent in box)


@given(st.data())
def test_a_task_means_by_its_tile_what_the_operator_means_as_a_whole(data: st.DataObject) -> None:
    """The reference on each task's boxes gives the box of the reference on everything."""
    node, tiling = tiled(data)
    rng = np.random.default_rng(0)
    reference = registry()[node.op].reference
    values = [_filled(m.tensor, rng) for m in tiling.imaps]
    whole = reference(node, values)
    assert [w.shape for w in whole] == [m.tensor.shape for m in tiling.omaps]
    for ranges in tiling.ranges()[:20]:
        boxes = [v[tuple(slice(*i) for i in m.at(ranges))] for m, v in zip(tiling.imaps, values, strict=True)]
        for made, all_of, tile_map in zip(reference(node, boxes), whole, tiling.omaps, strict=True):
            expected = all_of[tuple(slice(*i) for i in tile_map.at(ranges))]
            assert made.shape == expected.shape
            np.testing.assert_allclose(made, expected, rtol=1e-4, atol=1e-4)


def _filled(tensor: Tensor, rng: np.random.Generator) -> np.ndarray:
    if tensor.dtype is DType.BOOL:
        return rng.random(tensor.shape) < 0.5
    return rng.standard_normal(tensor.shape, np.float32) if tensor.dtype.is_float else np.zeros(tensor.shape, tensor.dtype.bits)
