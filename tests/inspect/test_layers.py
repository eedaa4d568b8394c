"""The layered drawing: laws of any drawing, and the looks of simple ones."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from mkc.inspect.layers import Drawing, Sizes, draw

SIZES = Sizes()
EDGES = st.lists(st.tuples(st.integers(0, 25), st.integers(0, 25)).filter(lambda e: e[0] < e[1]), max_size=60)


def boxes(drawing: Drawing) -> list[tuple[float, float, int]]:
    """(x, y, column) of each node."""
    return [(*drawing.places[n, row], drawing.column((n, row))) for n, row in enumerate(drawing.rows)]


@given(EDGES)
def test_every_edge_goes_down(edges: list[tuple[int, int]]) -> None:
    drawing = draw(26, edges)
    assert all(drawing.rows[a] < drawing.rows[b] for a, b in edges)


@given(EDGES)
def test_boxes_do_not_overlap(edges: list[tuple[int, int]]) -> None:
    drawing = draw(26, edges)
    rows: dict[tuple[float, int], list[float]] = {}
    for x, y, column in boxes(drawing):
        rows.setdefault((y, column), []).append(x)
    for row in rows.values():
        assert all(b - a > SIZES.width for a, b in pairwise(sorted(row)))


@given(EDGES)
def test_every_edge_is_joined_up_from_its_producer_to_its_consumer(edges: list[tuple[int, int]]) -> None:
    drawing = draw(26, edges)
    joins = set(drawing.joins)
    for a, b in edges:
        way = [*((a, row) for row in range(drawing.rows[a], drawing.rows[b])), (b, drawing.rows[b])]
        assert joins.issuperset(pairwise(way))


@given(EDGES)
def test_everything_lies_inside(edges: list[tuple[int, int]]) -> None:
    drawing = draw(26, edges)
    for x, y in drawing.places.values():
        assert 0 < x < drawing.width
        assert 0 < y < drawing.height


def test_a_chain_is_a_straight_line() -> None:
    drawing = draw(10, [(i, i + 1) for i in range(9)])
    assert len({x for x, _, _ in boxes(drawing)}) == 1


def test_a_source_stands_right_above_its_first_reader() -> None:
    drawing = draw(5, [(0, 2), (2, 3), (3, 4), (1, 4)])
    assert drawing.rows[1] == drawing.rows[4] - 1


def test_what_many_read_is_one_thread() -> None:
    chain = [(i, i + 1) for i in range(1, 9)]
    drawing = draw(10, [*chain, *((0, reader) for reader in range(2, 10))])
    threads = [spot for spot in drawing.places if spot[0] == 0 and spot[1] != drawing.rows[0]]
    assert len(threads) == 7


def test_a_long_graph_is_broken_into_columns() -> None:
    drawing = draw(300, [(i, i + 1) for i in range(299)])
    assert max(column for _, _, column in boxes(drawing)) >= 3
    assert 0.5 < drawing.width / drawing.height < 4


def test_a_graph_without_edges_is_one_row() -> None:
    assert set(draw(4, []).rows) == {0}
