"""signal, schedule: queues and counted events keep the order that link found, in one step and across steps."""

from dataclasses import replace
from itertools import pairwise
from random import Random
from unittest import mock

from hypothesis import given
from hypothesis import strategies as st
from laws.orders import by_conflicts, by_plan, producers
from laws.strategies import task_lists
from laws.test_link import fills, tasks_of, tiles
from oracle import machine

from mkc.ir.tasks import EventGraph, Schedule, Tasks
from mkc.passes.link import link
from mkc.passes.schedule import POLICIES, schedule
from mkc.passes.signal import signal

policies = st.sampled_from(POLICIES)
anything = st.booleans().flatmap(task_lists)


def planned(tasks: Tasks, workers: int, policy: str, seed: int) -> Schedule:
    """As the compiler plans, with costs drawn at random."""
    rng = Random(seed)
    costs = [rng.choice((1.0, 100.0, 10_000.0)) for _ in tasks.tasks]
    with mock.patch("mkc.passes.schedule.costs", return_value=costs):
        return schedule(signal(link(tasks)), machine(workers), policy)


@given(anything, st.integers(1, 5), policies, st.integers(0, 9))
def test_a_plan_orders_all_that_conflicts(tasks: Tasks, workers: int, policy: str, seed: int) -> None:
    steps = 3 if tasks.graph.loops else 1
    plan = by_plan(planned(tasks, workers, policy, seed), steps)
    for needed, kept in zip(by_conflicts(tasks, steps), plan, strict=True):
        assert needed & ~kept == 0


@given(task_lists(loops=True), st.integers(1, 5), policies, st.integers(0, 9))
def test_nobody_signals_for_the_next_step_while_others_still_owe_this_one(
    tasks: Tasks, workers: int, policy: str, seed: int
) -> None:
    """Counters only count: a signal that came a step early would stand for one that is missing."""
    plan = planned(tasks, workers, policy, seed)
    order, count = by_plan(plan, 2), len(tasks.tasks)
    for together in producers(plan.events):
        for ahead in together:
            assert all(order[count + ahead] >> other & 1 for other in together)


@given(anything)
def test_every_event_fires_and_somebody_waits_for_it(tasks: Tasks) -> None:
    events = signal(link(tasks))
    assert list(events.fanin) == [len(tasks_of_event) for tasks_of_event in producers(events)]
    awaited = {wait.event for waits in (*events.waits, events.stop) for wait in waits}
    assert awaited == set(range(len(events.fanin)))
    assert all(fanin > 0 for fanin in events.fanin)


@given(anything, st.integers(1, 5), policies, st.integers(0, 9))
def test_every_task_stands_in_one_queue_behind_those_it_waits_for(
    tasks: Tasks, workers: int, policy: str, seed: int
) -> None:
    plan = planned(tasks, workers, policy, seed)
    assert len(plan.queues) == (1 if policy == "dynamic" else workers)
    assert sorted(t for queue in plan.queues for t in queue) == list(range(len(tasks.tasks)))
    assert all(list(queue) == sorted(queue) for queue in plan.queues)
    signalled = producers(plan.events)
    for task, waits in enumerate(plan.waits):
        assert all(p < task for wait in waits if not wait.lag for p in signalled[wait.event])


def test_tasks_with_equal_consumers_share_an_event() -> None:
    takers = [(["u[0:4]"], ["v[0:1]"]), (["u[0:8]"], ["v[1:2]"])]
    events: EventGraph = signal(link(tasks_of(fills("u", 8, 4), takers)))
    assert events.fanin == (2, 2)
    assert [len(waits) for waits in events.waits[4:]] == [1, 2]


def listed(tasks: Tasks, workers: int, event_ns: float) -> Schedule:
    """As the compiler plans, where every task takes 10 ns."""
    with mock.patch("mkc.passes.schedule.costs", return_value=[10.0] * len(tasks.tasks)):
        return schedule(signal(link(tasks)), replace(machine(workers), event_ns=event_ns))


def test_a_chain_of_small_tasks_stays_on_one_worker() -> None:
    chain = [[([f"{a}[0:4]"], [f"{b}[0:4]"])] for a, b in pairwise("abcde")]
    plan = listed(tasks_of(*chain), 4, event_ns=25.0)
    assert plan.queues == ((0, 1, 2, 3), (), (), ())
    assert plan.predicted_ns == 40.0
    assert not any(plan.waits)


def test_tasks_leave_the_worker_of_what_they_wait_for_as_soon_as_an_event_is_cheaper() -> None:
    takers = [(["u[0:8]"], [tile]) for tile in tiles("v", 8, 6)]
    plan = listed(tasks_of(fills("u", 8, 1), takers), 4, event_ns=15.0)
    assert plan.queues == ((0, 1, 2, 6), (3,), (4,), (5,))


def test_a_tile_is_taken_up_by_the_worker_that_made_it() -> None:
    by_tile = [([t], [o]) for t, o in zip(tiles("u", 8, 3), tiles("v", 8, 3), strict=True)]
    plan = listed(tasks_of(fills("u", 8, 3), by_tile[::-1]), 3, event_ns=15.0)
    assert plan.queues == ((0, 5), (1, 4), (2, 3))
