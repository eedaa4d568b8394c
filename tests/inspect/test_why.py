"""What a task is said to wait for."""

import pytest

from mkc.compiler import Compilation
from mkc.errors import OptionError
from mkc.inspect.why import _overlap, why
from mkc.ir.span import Span


def last_of(compilation: Compilation, operator: str) -> str:
    return [name for name in compilation.program.names if name.startswith(operator)][-1]


def test_a_task_names_itself_its_place_and_what_it_touches(mlp: Compilation) -> None:
    text = why(mlp, 0)
    assert text.startswith(f"task 0, {mlp.program.names[0]}, at layers.0, 1 of ")
    assert "waits for nothing" in text
    assert "signals event 0, for linear_2" in text


def test_reading_what_another_writes_is_raw(mlp: Compilation) -> None:
    text = why(mlp, len(mlp.program.names) - 1)
    assert "0 to 1, 2 tasks of linear_0" in text
    assert "RAW, reads what it writes: elementwise1, 576 B of arena[0:960]" in text
    assert "signals nothing" in text


def test_taking_over_memory_that_another_reads_is_war(deep: Compilation) -> None:
    text = why(deep, last_of(deep, "linear_6"))
    assert "WAR, overwrites what it reads" in text
    assert "takes over memory of" in text


def test_a_state_makes_a_task_wait_for_the_step_before(counter: Compilation) -> None:
    text = why(counter, 0)
    assert "of the step before" in text
    assert "WAW, overwrites what it writes: state" in text


def test_a_name_may_be_written_without_spaces(mlp: Compilation) -> None:
    name = mlp.program.names[1]
    assert why(mlp, name.replace(" ", "")) == why(mlp, name) == why(mlp, 1) == why(mlp, "1")


def test_a_name_of_several_sections_is_explained_for_each(two_sections: Compilation) -> None:
    text = why(two_sections, two_sections.program.names[0])
    assert "in section prompt" in text
    assert "in section decode" in text


def test_numbers_are_those_of_the_program(two_sections: Compilation) -> None:
    last = len(two_sections.program.names) - 1
    assert why(two_sections, last).startswith(f"task {last}, {two_sections.program.names[last]}")


@pytest.mark.parametrize(
    ("task", "says"),
    [
        (99, "there is no task 99"),
        ("conv", "the operators are linear_0"),
        ("linear_0[7:9]", "linear_0 has linear_0["),
    ],
)
def test_an_unknown_task_is_refused_with_those_that_there_are(
    mlp: Compilation, task: int | str, says: str
) -> None:
    with pytest.raises(OptionError, match="no task") as caught:
        why(mlp, task)
    assert says in str(caught.value)


def test_overlaps_are_counted_to_the_byte() -> None:
    rows = Span(0, 310, 10, ((100, 4),))  # 10 bytes of each of 4 rows of 100
    assert _overlap(rows, Span(5, 105, 100)) == 10
    assert _overlap(rows, Span(10, 90, 80)) == 0
    assert _overlap(rows, rows) == 40
    assert _overlap(rows, Span(0, 1 << 20, 1, ((2, 1 << 19),))) is None
