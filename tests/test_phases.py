"""Where a step's time goes: phases of operators, told from stamps."""

from types import SimpleNamespace
from typing import Any

import numpy as np

from mkc.bench.phases import Labels, Phase, Spread, phases, spreads, table
from mkc.ir.program import STAMP

PROGRAM: Any = SimpleNamespace(
    names=("norm_0[0:8]", "linear_1[0:4]", "linear_1[4:8]"),
    bodies=(SimpleNamespace(header="rms_norm"), SimpleNamespace(header="linear"), SimpleNamespace(header="linear")),
    tasks=np.array([(0,), (1,), (2,)], [("body", "<u2")]),
)  # the tasks of one operator may run two bodies


def run(*runs: tuple[int, int, int, int, int]) -> list[Phase]:
    return phases(np.array(list(runs), STAMP), Labels.of(PROGRAM))


def phase(name: str, took: int, ready: int = 0, work: int = 0) -> Phase:
    return Phase(name, 2, Spread(0, 0, 0), Spread(0, 0, ready), Spread(0, 0, took), Spread(0, work, 0))


def test_a_phase_reaches_from_the_end_of_the_one_before_to_its_own_last_task() -> None:
    found = run((0, 0, 10, 20, 100), (0, 1, 110, 150, 300), (1, 2, 110, 180, 340), (0, 0, 310, 350, 400))
    assert [(p.name, p.tasks, p.took, p.waited, p.worked) for p in found] == [("linear 1", 2, 240, 80, 155), ("rms_norm 0", 1, 60, 10, 50)]


def test_the_tasks_of_a_phase_spread_around_its_course() -> None:
    (found,) = run((0, 0, 0, 0, 100), (0, 1, 90, 150, 300), (1, 2, 110, 180, 340))
    assert found == Phase("linear 1", 2, Spread(-10, 0, 10), Spread(50, 65, 80), Spread(200, 220, 240), Spread(150, 155, 160))


def test_an_input_that_was_there_before_has_been_waited_for_less_than_nothing() -> None:
    assert run((0, 0, 0, 0, 50), (1, 1, 0, 10, 70), (1, 2, 0, 20, 60))[0].waited == -30


def test_phases_of_the_same_body_stand_in_one_line_with_their_medians() -> None:
    same = [phase("linear 1", 1000, 500, 400), phase("linear 1", 3000, 500, 400), phase("norm 0", 9000)]
    _, *lines = table(same).splitlines()
    assert [line.split() for line in lines] == [
        ["norm", "0", "1", "2", "9.00", "0.00", "0.00", "9.0"], ["linear", "1", "2", "2", "2.00", "0.50", "0.40", "4.0"]
    ]  # fmt: skip
    _, *lines = spreads(same).splitlines()
    assert [line.split("|")[3].split() for line in lines] == [["0.00", "0.00", "9.00"], ["0.00", "0.00", "2.00"]]
