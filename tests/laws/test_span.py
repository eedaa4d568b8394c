"""Span: exactly the bytes of a box, and exact about which boxes meet."""

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st
from laws.strategies import boxes, layouts, touched

from mkc.ir.layout import Layout, contiguous
from mkc.ir.span import Span, span


def bytes_of(s: Span) -> frozenset[int]:
    starts = {s.start}
    for stride, count in s.levels:
        starts = {at + i * stride for at in starts for i in range(count)}
    return frozenset(at + byte for at in starts for byte in range(s.run))


@given(st.data())
def test_a_span_is_the_bytes_of_its_box(data: st.DataObject) -> None:
    layout = data.draw(layouts())
    box, itemsize = data.draw(boxes(layout)), data.draw(st.sampled_from((1, 2, 4)))
    found, expected = span(layout, box, itemsize), touched(layout, box, itemsize)
    assert bytes_of(found) == expected
    assert (found.start, found.stop) == (min(expected), max(expected) + 1)


@given(st.data())
def test_spans_meet_where_their_boxes_share_a_byte(data: st.DataObject) -> None:
    first = data.draw(layouts())
    moved = st.integers(0, 30).map(lambda offset: replace(first, offset=offset))
    then = data.draw(st.one_of(st.just(first), moved, layouts()))  # tiles of one tensor, of its slices, of any two
    a, b = data.draw(boxes(first)), data.draw(boxes(then))
    sizes = data.draw(st.tuples(st.sampled_from((1, 2, 4)), st.sampled_from((1, 2, 4))))
    mine, theirs = touched(first, a, sizes[0]), touched(then, b, sizes[1])
    left, right = span(first, a, sizes[0]), span(then, b, sizes[1])
    assert left.meets(right) == right.meets(left) == bool(mine & theirs)
    assert not left.covers(right) or mine >= theirs


@given(st.integers(1, 7), st.integers(1, 7), st.data())
def test_tiles_of_a_matrix_meet_where_their_rows_and_columns_do(rows: int, columns: int, data: st.DataObject) -> None:
    layout = Layout((rows, columns), (columns + data.draw(st.integers(0, 3)), 1))
    a, b = data.draw(boxes(layout)), data.draw(boxes(layout))
    overlap = all(lo < stop and at < hi for (lo, hi), (at, stop) in zip(a, b, strict=True))
    assert span(layout, a, 4).meets(span(layout, b, 4)) == overlap


@given(st.lists(st.integers(2, 9), min_size=1, max_size=2, unique=True), st.data())
def test_windows_with_the_same_strides_meet_wherever_they_begin(strides: list[int], data: st.DataObject) -> None:
    """Also where a row begins near the end of a stride and goes on in the next, so that digits would carry."""
    steps = (*sorted(strides, reverse=True), 1)
    windows = []
    for _ in range(2):
        shape = tuple(data.draw(st.integers(1 if step == 1 else 2, 3)) for step in steps)
        windows.append(Layout(shape, steps, data.draw(st.integers(0, 30))))
    boxes_of = [tuple((0, n) for n in window.shape) for window in windows]
    a, b = (span(window, box, 1) for window, box in zip(windows, boxes_of, strict=True))
    mine, theirs = (touched(window, box, 1) for window, box in zip(windows, boxes_of, strict=True))
    assert a.meets(b) == b.meets(a) == bool(mine & theirs)


def test_interleaved_columns_do_not_meet() -> None:
    even, odd = Layout((5, 4), (8, 2)), Layout((5, 4), (8, 2), 1)
    whole = tuple((0, n) for n in even.shape)
    assert not span(even, whole, 4).meets(span(odd, whole, 4))
    assert span(even, whole, 4).meets(span(contiguous((40,)), ((1, 3),), 4))
