"""Axis: its parts cover it once, in order, and differ by at most one unit."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from oracle import machine

from mkc.ir.cost import cut
from mkc.ir.dtype import DType
from mkc.ir.graph import Kind, Storage, Tensor
from mkc.ir.layout import contiguous
from mkc.ir.tiling import Axis, Split, TileMap


@given(st.integers(1, 400), st.integers(1, 70), st.data())
def test_parts_cover_an_axis_once_and_differ_by_at_most_one_unit(extent: int, unit: int, data: st.DataObject) -> None:
    units = -(-extent // unit)
    axis = Axis(extent, data.draw(st.integers(1, units)), unit)
    parts = [axis.at(part) for part in range(axis.parts)]
    assert [i for lo, hi in parts for i in range(lo, hi)] == list(range(extent))
    sizes = [-(-(hi - lo) // unit) for lo, hi in parts]
    assert 1 <= min(sizes) <= max(sizes) <= min(sizes) + 1


def test_250_columns_in_tiles_of_64_end_in_a_ragged_one() -> None:
    axis = Axis(250, 4, 64)
    assert [axis.at(part) for part in range(4)] == [(0, 64), (64, 128), (128, 192), (192, 250)]


def test_an_axis_cannot_have_more_parts_than_units() -> None:
    with pytest.raises(ValueError, match="cannot have 5 parts"):
        Axis(250, 5, 64)


@given(st.lists(st.integers(1, 300), min_size=1, max_size=4), st.integers(1, 264), st.floats(1, 1e9))
def test_cut_makes_no_more_tasks_than_workers(extents: list[int], workers: int, nbytes: float) -> None:
    axes = cut(machine(workers), extents, nbytes, 0.0)
    parts = 1
    for axis, extent in zip(axes, extents, strict=True):
        assert axis.extent == extent
        parts *= axis.parts
    assert parts <= workers


@given(st.integers(1, 6), st.integers(1, 6), st.data())
def test_shared_indices_go_to_every_task_that_needs_them(groups: int, share: int, data: st.DataObject) -> None:
    """As key heads that several query heads read."""
    keys = Tensor(DType.F32, contiguous((groups,)), Storage("keys", groups * 4, Kind.INPUT))
    axis = Axis(groups * share, data.draw(st.integers(1, groups * share)))
    for part in range(axis.parts):
        ((lo, hi),) = TileMap(keys, (Split(0, share),)).at((axis.at(part),))
        assert set(range(lo, hi)) == {head // share for head in range(*axis.at(part))}


@given(st.integers(1, 6), st.integers(1, 6), st.data())
def test_a_task_takes_several_indices_for_each_of_its_own(groups: int, each: int, data: st.DataObject) -> None:
    """As heads of queries along heads of keys."""
    queries = Tensor(DType.F32, contiguous((groups * each,)), Storage("queries", groups * each * 4, Kind.INPUT))
    axis = Axis(groups, data.draw(st.integers(1, groups)))
    for part in range(axis.parts):
        ((lo, hi),) = TileMap(queries, (Split(0, each=each),)).at((axis.at(part),))
        assert {head // each for head in range(lo, hi)} == set(range(*axis.at(part)))
        assert (hi - lo) % each == 0
