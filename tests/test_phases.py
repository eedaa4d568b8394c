"""Where a step's time goes: phases of operators, told from stamps."""

from types import SimpleNamespace
from typing import Any

import numpy as np

from mkc.bench.phases import Phase, phases, table
from mkc.ir.program import STAMP

PROGRAM: Any = SimpleNamespace(
    names=("norm_0[0:8]", "linear_1[0:4]", "linear_1[4:8]"),
    bodies=(SimpleNamespace(header="rms_norm"), SimpleNamespace(header="linear"), SimpleNamespace(header="linear")),
    tasks=np.array([(0,), (1,), (2,)], [("body", "<u2")]),
)  # the tasks of one operator may run two bodies


def run(*runs: tuple[int, int, int, int, int]) -> list[Phase]:
    return phases(np.array(list(runs), STAMP), PROGRAM)


def test_a_phase_reaches_from_the_end_of_the_one_before_to_its_own_last_task() -> None:
    found = run((0, 0, 10, 20, 100), (0, 1, 110, 150, 300), (1, 2, 110, 180, 340), (0, 0, 310, 350, 400))
    assert found == [Phase("linear 1", 2, 240, 80, 155), Phase("rms_norm 0", 1, 60, 10, 50)]


def test_an_input_that_was_there_before_has_been_waited_for_less_than_nothing() -> None:
    assert run((0, 0, 0, 0, 50), (1, 1, 0, 10, 70), (1, 2, 0, 20, 60))[0].waited == -30


def test_phases_of_the_same_body_stand_in_one_line_with_their_medians() -> None:
    lines = table([Phase("linear 1", 2, 1000, 500, 400), Phase("linear 1", 2, 3000, 500, 400), Phase("norm 0", 1, 9000, 0, 0)])
    assert [line.split()[:4] for line in lines.splitlines()[1:]] == [["norm", "0", "1", "1"], ["linear", "1", "2", "2"]]
    assert "2.00" in lines.splitlines()[2]
