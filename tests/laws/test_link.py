"""link: the order of all pairs of tasks that share a byte, no more and no less."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from laws.orders import by_conflicts, by_link, numbers
from laws.strategies import FLAG, task_lists
from laws.test_span import bytes_of

from mkc.ir.graph import Graph, Node
from mkc.ir.layout import Layout, contiguous
from mkc.ir.span import span
from mkc.ir.tasks import Access, Task, TaskGraph, Tasks, access
from mkc.passes._ledger import covered
from mkc.passes.link import link


@given(task_lists(loops=False))
def test_link_orders_what_brute_force_over_bytes_orders(tasks: Tasks) -> None:
    assert by_link(link(tasks), 1) == by_conflicts(tasks, 1)


@given(task_lists(loops=True), st.integers(2, 3))
def test_two_linked_steps_order_every_further_step(tasks: Tasks, steps: int) -> None:
    assert by_link(link(tasks), steps) == by_conflicts(tasks, steps)


@given(task_lists(loops=True))
def test_the_flag_is_read_after_all_who_write_it(tasks: Tasks) -> None:
    if tasks.graph.until is None:
        return
    linked = link(tasks)
    flag = bytes_of(access(FLAG, ()).span)
    order = by_link(linked, 1)
    awaited = numbers(linked.stop)
    assert set(awaited) <= set(range(len(tasks.tasks)))
    settled = {e for t in awaited for e in range(t + 1) if e == t or order[t] >> e & 1}
    for number, task in enumerate(tasks.tasks):
        writes = any(w.memory == FLAG.storage.name and bytes_of(w.span) & flag for w in task.writes)
        assert not writes or number in settled


# ---- what breaks others


Tile = tuple[list[str], list[str]]  # reads, writes


def tasks_of(*nodes: list[Tile]) -> Tasks:
    """Nodes of tasks (reads, writes); "u[0:4]" is four bytes of u."""
    tasks, first = [], [0]
    for number, node in enumerate(nodes):
        tasks += [Task(number, (), tuple(map(_slice, r)), tuple(map(_slice, w))) for r, w in node]
        first.append(len(tasks))
    return Tasks(Graph(tuple(Node(f"n{i}", "fake", (), ()) for i in range(len(nodes))), (), ()), (), tuple(tasks), tuple(first))


def _slice(text: str) -> Access:
    memory, _, bounds = text.rstrip("]").partition("[")
    lo, hi = map(int, bounds.split(":"))
    return Access(memory, span(contiguous((hi,)), ((lo, hi),), 1))


def after(graph: TaskGraph) -> list[list[int]]:
    return [numbers(ranges) for ranges in graph.before]


def fills(name: str, extent: int, count: int) -> list[Tile]:
    """A node that writes `extent` bytes in `count` tiles."""
    return [([], [tile]) for tile in tiles(name, extent, count)]


def tiles(name: str, extent: int, count: int) -> list[str]:
    """`extent` bytes in `count` nearly equal slices."""
    return [f"{name}[{extent * i // count}:{extent * (i + 1) // count}]" for i in range(count)]


def test_a_sum_of_a_product_and_its_own_input() -> None:
    """y = W u + f(u): each task of y reads all of u, for W u, and one tile of f."""
    u = fills("u", 8, 4)
    f = [([t], [o]) for t, o in zip(tiles("u", 8, 4), tiles("f", 8, 4), strict=True)]
    y = [(["u[0:8]", t], [o]) for t, o in zip(tiles("f", 8, 4), tiles("y", 8, 4), strict=True)]
    order = after(link(tasks_of(u, f, y)))
    assert order[4:8] == [[0], [1], [2], [3]]
    assert order[8] == [0, 1, 2, 3, 4]  # not only f's tile, which brings one tile of u along


def test_one_producer_read_first_by_tile_and_then_whole() -> None:
    u = fills("u", 8, 4)
    by_tile = [([t], [o]) for t, o in zip(tiles("u", 8, 4), tiles("v", 8, 4), strict=True)]
    order = after(link(tasks_of(u, by_tile, [(["u[0:8]"], ["w[0:1]"])], [(["v[0:8]"], ["x[0:1]"])])))
    assert order[8] == [0, 1, 2, 3]
    assert order[9] == [4, 5, 6, 7]


def test_a_buffer_overwritten_tile_by_tile_while_others_still_read_it() -> None:
    u = fills("u", 8, 1)
    readers = [(["u[0:5]"], ["v[0:1]"]), (["u[4:8]"], ["v[1:2]"])]
    writers = fills("u", 8, 4)
    again = [(["u[0:8]"], ["w[0:1]"])]
    order = after(link(tasks_of(u, readers, writers, again)))
    assert order[3:7] == [[1], [1], [1, 2], [2]]
    assert order[7] == [3, 4, 5, 6]


def test_a_task_that_joins_and_forks_at_once() -> None:
    join = [(["a[0:1]", "b[0:1]"], ["c[0:2]"])]
    forks = [(["c[0:1]"], ["d[0:1]"]), (["c[1:2]"], ["d[1:2]"])]
    order = after(link(tasks_of([([], ["a[0:1]"])], [([], ["b[0:1]"])], join, forks)))
    assert order[2:] == [[0, 1], [2], [2]]


@pytest.mark.parametrize(("makers", "takers", "extent"), [(3, 4, 250), (4, 3, 250), (4, 5, 250), (1, 3, 7)])
def test_tiles_that_do_not_line_up(makers: int, takers: int, extent: int) -> None:
    made, taken = tiles("u", extent, makers), tiles("u", extent, takers)
    takes = [([tile], [out]) for tile, out in zip(taken, tiles("v", extent, takers), strict=True)]
    order = after(link(tasks_of(fills("u", extent, makers), takes)))
    for number, tile in enumerate(taken):
        overlapping = [i for i, m in enumerate(made) if _slice(m).span.meets(_slice(tile).span)]
        assert order[makers + number] == overlapping


@pytest.mark.parametrize("nodes", [1, 3])
def test_the_flag_waits_for_no_task_of_an_earlier_step(nodes: int) -> None:
    """Even where the last task of a step and the first of the next write the same bytes, with gaps."""
    flag = Access("a", span(Layout((2,), (2,)), ((0, 2),), 1))
    tasks = tuple(Task(node, (), (), (flag,)) for node in range(nodes))
    graph = Graph(tuple(Node(f"n{i}", "fake", (), ()) for i in range(nodes)), (), (), loops=True, until=FLAG)
    linked = link(Tasks(graph, (), tasks, tuple(range(nodes + 1))))
    assert numbers(linked.stop) == [nodes - 1]  # which comes after the others


def test_edges_that_others_imply_are_dropped() -> None:
    chain = [[([f"m[{i}:{i + 1}]"] if i else [], [f"m[{i + 1}:{i + 2}]"])] for i in range(4)]
    reads_all = [(["m[1:5]"], ["z[0:1]"])]
    assert after(link(tasks_of(*chain, reads_all)))[4] == [3]


def test_edges_that_several_others_imply_together_are_dropped() -> None:
    """Each task of v brings one tile of u along; all of them bring u."""
    v = [([t], [o]) for t, o in zip(tiles("u", 8, 4), tiles("v", 8, 4), strict=True)]
    assert after(link(tasks_of(fills("u", 8, 4), v, [(["u[0:8]", "v[0:8]"], ["w[0:1]"])])))[8] == [4, 5, 6, 7]


def test_columns_that_fill_a_matrix_together_are_one_run() -> None:
    matrix = Layout((3, 8), (8, 1))
    columns = [span(matrix, ((0, 3), (at, at + 2)), 1) for at in range(0, 8, 2)]
    assert {column.levels for column in columns} == {((8, 3),)}
    assert covered({((8, 3),): [(c.start, c.start + c.run) for c in columns]}) == ((0, 24),)
    assert covered({((8, 3),): [(c.start, c.start + c.run) for c in columns[1:]]}) == ()
