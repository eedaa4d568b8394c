"""combs: exactly the distances at which two spans share a byte, and the next of them from anywhere."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from mkc.ir.combs import Comb, Form, distances

levels = st.lists(st.tuples(st.integers(1, 12), st.integers(1, 5)), max_size=3).map(tuple)  # nested, overlapping, equal
forms = st.tuples(st.integers(1, 5), levels)


def bytes_of(form: Form) -> set[int]:
    """Of a span that starts at 0."""
    run, found = form[0], {0}
    for stride, count in form[1]:
        found = {at + stride * i for at in found for i in range(count)}
    return {at + byte for at in found for byte in range(run)}


def members(comb: Comb) -> set[int]:
    return {comb.start + number for number in bytes_of((comb.run, comb.levels))}


@given(forms, forms)
def test_spans_share_a_byte_at_just_these_distances(one: Form, other: Form) -> None:
    assert set().union(*map(members, distances(one, other))) == {a - b for a in bytes_of(one) for b in bytes_of(other)}


@given(forms, forms)
def test_a_comb_holds_its_members_and_finds_the_next(one: Form, other: Form) -> None:
    for comb in distances(one, other):
        held = members(comb)
        assert (min(held), max(held) + 1) == (comb.start, comb.stop)
        numbers = np.arange(comb.start - 3, comb.stop + 3)
        assert set(numbers[comb.holds(numbers)].tolist()) == held
        for number in range(comb.start - 3, comb.stop):
            lo, hi = comb.run_beyond(number)
            assert number < hi
            assert held >= set(range(lo, hi))
            assert held.isdisjoint(range(number, lo))


def test_columns_of_matrices_of_other_widths_have_few_combs() -> None:
    """The question does not grow with the rows."""
    narrow, wide = (32, ((6144, 2048),)), (64, ((8192, 2048),))
    assert len(distances(narrow, wide)) == 3
    assert len(distances(narrow, narrow)) == 1
