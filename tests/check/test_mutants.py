"""The checker refuses every plan that can go wrong: plans are broken in one place, and run in many orders or in all."""

from collections import Counter
from collections.abc import Callable
from random import Random

import pytest
from check.mutations import MUTATIONS, fingerprint, mutant
from check.outcomes import Runner
from check.plans import NAMES, plan

from mkc.errors import UnsoundPlan
from mkc.ir.check import check
from mkc.ir.program import Program
from mkc.ir.target import Target

SAMPLE, ALL = 32, 420  # mutants of each of 16 plans
SMALL = ["mlp-static-2", "mlp-dynamic-2", "attention-static-2", "recurrence-static-2"]  # all orders can be tried
Counts = dict[str, Counter[str]]


def refused(program: Program, target: Target) -> bool:
    try:
        check(program, target)
    except UnsoundPlan:
        return True
    return False


def mutants(name: str, count: int) -> list[tuple[str, Program]]:
    """Different ones, of all kinds in turn."""
    program, rng = plan(name).made.program, Random(name)
    kinds, seen = list(MUTATIONS), {fingerprint(program)}
    found: list[tuple[str, Program]] = []
    for turn in range(60 * count):
        kind = kinds[turn % len(kinds)]
        made = mutant(program, kind, rng)
        if made is not None and fingerprint(made) not in seen:
            seen.add(fingerprint(made))
            found.append((kind, made))
        if len(found) == count:
            break
    return found


def tally(name: str, count: int, accepted: Callable[[Program], bool | None], others: Callable[[Program], bool]) -> Counts:
    """By kind of mutation, how many are refused or accepted, and harmful or not as far as is tried."""
    counts: Counts = {}
    for kind, program in mutants(name, count):
        no = refused(program, plan(name).target)
        harm = others(program) if no else accepted(program)
        counts.setdefault(kind, Counter())[f"{'refused' if no else 'accepted'} {'harmful' if harm else 'harmless'}"] += 1
    return counts


def missed(counts: Counts) -> list[str]:
    return [kind for kind, found in counts.items() if found["accepted harmful"]]


@pytest.mark.parametrize("name", NAMES)
def test_the_plans_themselves_are_accepted(name: str) -> None:
    check(plan(name).made.program, plan(name).target)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_no_mutant_that_can_go_wrong_is_accepted(name: str) -> None:
    runner = Runner(plan(name))
    counts = tally(name, SAMPLE, lambda p: runner.is_harmful(p, 12), lambda p: True)
    assert missed(counts) == []
    assert sum(map(Counter.total, counts.values())) == SAMPLE


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_no_mutant_of_thousands_is_accepted_that_some_order_shows_to_be_wrong() -> None:
    """Prints the tables of docs/reliability.md."""
    by_kind: Counts = {}
    for name in NAMES:
        runner, tries = Runner(plan(name)), 4 if name.startswith("language") else 12  # a launch of it takes long
        counts = tally(name, ALL, lambda p, r=runner, n=tries: r.is_harmful(p, 3 * n), lambda p, r=runner, n=tries: r.is_harmful(p, n))
        assert missed(counts) == [], name
        for kind, found in counts.items():
            by_kind.setdefault(kind, Counter()).update(found)
        print(_row(name, sum(counts.values(), Counter[str]())), flush=True)
    for kind, found in by_kind.items():
        print(_row(kind, found))
    total = sum(by_kind.values(), Counter[str]())
    print(_row("all", total))
    assert total.total() >= 5000


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", SMALL)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_no_mutant_of_a_small_plan_is_accepted_that_any_order_shows_to_be_wrong(name: str) -> None:
    runner = Runner(plan(name))
    counts = tally(name, ALL, lambda p: runner.can_be_harmful(p, 5000) is not False, lambda p: runner.is_harmful(p, 12))
    assert missed(counts) == []
    print(_row(name, sum(counts.values(), Counter[str]())))


def _row(name: str, found: Counter[str]) -> str:
    numbers = [found[key] for key in ("refused harmful", "refused harmless", "accepted harmless", "accepted harmful")]
    return f"| `{name}` | {found.total()} | {' | '.join(map(str, numbers))} |"
