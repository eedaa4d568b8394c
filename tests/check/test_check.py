"""check: what it refuses, how it says so, and that its view of order and overlap is that of brute force."""

from collections.abc import Callable
from dataclasses import replace
from random import Random
from unittest import mock

import numpy as np
import pytest
from check.mutations import alias_tensors, drop_wait
from check.plans import NAMES, Plan, plan
from graphs import counter, doubled_and_summed
from laws.orders import by_plan
from oracle import machine, raised
from random_graphs.models import RandomModel

from mkc.compiler import compile_graphs
from mkc.errors import UnsoundPlan
from mkc.ir import order
from mkc.ir.builder import Builder
from mkc.ir.check import check
from mkc.ir.dtype import DType
from mkc.ir.expr import Arg, Call, Const
from mkc.ir.graph import Graph, Kind
from mkc.ir.patterns import Overlap, Patterns
from mkc.ir.program import Part, Program
from mkc.ir.published import Polls
from mkc.ir.span import Span, span
from mkc.ir.tiling import TileMap
from mkc.passes.encode import encode


def broken(graph: Graph, table: str, change: Callable[[np.ndarray], object], workers: int = 4, policy: str = "static") -> Program:
    program = compile_graphs([graph], machine(workers), policy).program
    words = getattr(program, table).copy()
    change(words)
    return replace(program, **{table: words})


def refusal(program: Program, workers: int = 4) -> str:
    with pytest.raises(UnsoundPlan) as refused:
        check(program, machine(workers))
    return str(refused.value)


def test_a_race_shows_both_tasks_what_they_touch_and_their_words() -> None:
    message = refusal(broken(doubled_and_summed(), "tasks", lambda t: t["waits"].__setitem__(-1, 0)))
    assert message == (
        "nothing puts task 0 before task 7, and they meet in bytes 0 to 256 of the arena:\n"
        "  0 linear_0[0:64, 0:1] writes [0:1, 0:64] of linear0@0:float32[1x256], bytes 0 to 256\n"
        "  7 linear_1[192:256, 0:1] reads [0:1, 0:256] of linear0@0:float32[1x256], bytes 0 to 1024\n"
        "queue 0, place 1 of 2:\n"
        "  > 0: linear_0[0:64, 0:1] body 0 waits [] signals 0\n"
        "    4: linear_1[0:64, 0:1] body 1 waits [e0>=4] signals -1\n"
        "queue 3, place 2 of 2:\n"
        "    3: linear_0[192:256, 0:1] body 0 waits [] signals 0\n"
        "  > 7: linear_1[192:256, 0:1] body 1 waits [] signals -1"
    )


def test_tasks_that_wait_for_each_other_are_named() -> None:
    def swap(queue: np.ndarray) -> None:
        queue[:2] = queue[1::-1].copy()

    assert refusal(broken(doubled_and_summed(), "queue", swap)).startswith("tasks wait for each other in a circle: 4, for 4")


def test_a_ticket_that_waits_for_a_later_one_is_refused() -> None:
    message = refusal(broken(doubled_and_summed(), "queue", lambda q: q.__setitem__([3, 4], q[[4, 3]]), policy="dynamic"))
    assert message.startswith("ticket 3, task 4, waits for task 3, whose ticket is 4")


@pytest.mark.parametrize(
    ("table", "change", "sentence"),
    [
        ("waits", lambda w: w["fanin"].__setitem__(0, 3), "task 4 waits for 3 signals of event 0, which gets 4 in a step"),
        ("waits", lambda w: w["lag"].__setitem__(0, 2), "counters keep one step apart"),
        ("waits", lambda w: w["event"].__setitem__(0, 9), "waits for event 9, and there are 1"),
        ("queue", lambda q: q.__setitem__(0, 1), "task 0 stands 0 times in the queues of tasks 0 to 8, not 1"),
        ("tasks", lambda t: t["ranges"].__setitem__((2, 0, 1), 200), "do not share out its axis 0 of 256"),
        ("tasks", lambda t: t["body"].__setitem__(2, 1), "task 2 is one of linear_0, which has body [0]"),
        ("operands", lambda o: o["offset"].__setitem__(1, 4), r"is at byte 4 of slot 1, input x (1024 bytes)"),
    ],
)
def test_words_that_point_elsewhere_are_named(table: str, change: Callable[[np.ndarray], object], sentence: str) -> None:
    assert sentence in refusal(broken(doubled_and_summed(), table, change))


def test_a_flag_that_is_read_too_early_is_refused() -> None:
    program = broken(counter(), "sections", lambda s: s["stop_waits"].__setitem__(0, 0), workers=2)
    idle = np.array([0, 0, len(program.queue)], np.uint32)  # worker 0, which decides, has no tasks
    message = refusal(replace(program, queue=np.sort(program.queue), bounds=idle), 2)
    assert "whether to run another step is read from stop:bool[scalar] while task 3 may yet write it" in message


def test_a_counter_that_a_later_step_could_fill_is_refused() -> None:
    """Task 2, which nobody holds back, may signal twice before task 0 does: two signals, but not of both."""
    b = Builder("ahead")
    first, seen, free = (b.input(name, (), DType.I64, Kind.STATE) for name in ("first", "seen", "free"))
    plus_one = Call("add", (Arg(0), Const(1)))
    b.append("elementwise", (first,), (first,), expr=plus_one)
    b.append("elementwise", (first,), (seen,), expr=plus_one)
    b.append("elementwise", (free,), (free,), expr=plus_one)

    def join(tasks: np.ndarray) -> None:
        tasks["signal"][2], tasks["waits"][2] = 0, 0

    with mock.patch("mkc.passes.schedule._soonest", lambda workers, awaited: workers.first_free()):
        program = broken(b.finish((), loops=True), "tasks", join, workers=3)
    program.waits["fanin"][program.waits["event"] == 0] = 2
    assert "task 2 may signal event 0 of a step before task 0 has signalled that of the step before" in refusal(program, 3)


def test_two_tensors_in_the_same_bytes_are_refused_though_all_is_in_order() -> None:
    one, rng = plan("language-static-2"), Random(0)
    overlaid = [made for _ in range(60) if (made := alias_tensors(one.made.program, rng)) is not None]
    assert any("lies there" in said(made, one) for made in overlaid)


def said(program: Program, one: Plan) -> str:
    try:
        check(program, one.target)
    except UnsoundPlan as refused:
        return str(refused)
    return ""


def test_more_workers_than_the_target_has_are_refused() -> None:
    program = compile_graphs([doubled_and_summed()], machine(4)).program
    assert "has room for 3 at once" in refusal(program, 3)


def test_the_checker_is_on_and_can_be_switched_off(monkeypatch: pytest.MonkeyPatch) -> None:
    def unsound(schedules: object) -> Program:
        found = drop_wait(encode(schedules), Random(0))  # type: ignore[arg-type]
        assert found is not None
        return found

    monkeypatch.setattr("mkc.compiler.encode", unsound)
    with pytest.raises(UnsoundPlan):
        compile_graphs([doubled_and_summed()], machine(4))
    monkeypatch.setenv("MKC_CHECK", "0")
    compile_graphs([doubled_and_summed()], machine(4))


# ---- against brute force


@pytest.mark.parametrize("name", NAMES)
def test_the_order_is_that_of_brute_force(name: str) -> None:
    program = plan(name).made.program
    for section, lowering in enumerate(plan(name).made.sections):
        found, count = order.orders_of(program, section, Polls()).complete, len(lowering.tasks.tasks)
        steps = 1 + program.meanings[section].loops
        truth = by_plan(lowering.schedule, steps)
        for then in range(count):
            now = found.now[then][found.chain] >= found.place
            assert [bool(truth[then] >> t & 1) or t == then for t in range(count)] == now.tolist()
            if steps == 2:
                ago = found.ago[then][found.chain] >= found.place
                assert [bool(truth[count + then] >> t & 1) for t in range(count)] == ago.tolist()


@pytest.mark.parametrize("seed", range(12))
def test_tasks_meet_where_their_spans_do(seed: int) -> None:
    model = RandomModel(seed, size=8)
    program = compile_graphs([raised(model, *model.example_inputs).graph], machine(3, bytes_per_ns=0.5)).program
    patterns, parts = Patterns(program), program.meanings[0].parts
    views = [(part, m) for part in parts for m in (*part.tiling.omaps, *part.tiling.imaps)]
    for part, one in views:
        for then, other in views:
            if one.tensor.storage == other.tensor.storage:
                start, begin = (m.tensor.layout.offset * m.tensor.dtype.itemsize for m in (one, other))
                overlap = patterns.overlap(patterns.of(part, one), patterns.of(then, other), begin - start)
                pairs = set() if overlap is None else _pairs(overlap)
                assert pairs == _meeting(program, part, one, then, other)


def _pairs(overlap: Overlap) -> set[tuple[int, int]]:
    columns = zip(overlap.tasks.tolist(), overlap.columns.tolist(), strict=True)
    return {(task, then) for task, column in columns for then in np.flatnonzero(overlap.column_of == column).tolist()}


def _meeting(program: Program, part: Part, one: TileMap, then: Part, other: TileMap) -> set[tuple[int, int]]:
    mine, theirs = _spans(program, part, one), _spans(program, then, other)
    return {(i, j) for i, a in enumerate(mine) for j, b in enumerate(theirs) if a.meets(b)}


def _spans(program: Program, part: Part, tile_map: TileMap) -> list[Span]:
    tensor, ranges = tile_map.tensor, program.tasks["ranges"][slice(*part.tasks)].tolist()
    return [span(tensor.layout, tile_map.at(tuple((lo, hi) for lo, hi in r)), tensor.dtype.itemsize) for r in ranges]
