"""encode: the words mean the plan, and numpy and the device lay them out alike."""

from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from layouts import layout_claims
from oracle import machine, raised
from random_graphs.models import RandomModel

from mkc.compiler import Lowering, lower
from mkc.errors import PlanError
from mkc.ir import program as abi
from mkc.ir.graph import Graph, Kind
from mkc.passes.encode import encode
from mkc.passes.schedule import POLICIES
from mkc.targets import cpu


def test_structs_lie_on_the_device_as_they_lie_in_numpy() -> None:
    cpu.build(layout_claims(), cpu.FLAGS)


def test_a_task_is_one_cache_line() -> None:
    assert abi.TASK.itemsize == 64


@cache
def graph(seed: int) -> Graph:
    model = RandomModel(seed, size=6)
    return raised(model, *model.example_inputs).graph


def lowered(seeds: tuple[int, ...], workers: int, policy: str) -> tuple[list[Lowering], abi.Program]:
    sections = [lower(graph(seed), machine(workers), policy) for seed in seeds]
    return sections, encode([section.schedule for section in sections])


@settings(max_examples=12)
@given(st.tuples(st.integers(0, 9)) | st.tuples(st.integers(0, 9), st.integers(0, 9)), st.integers(1, 5), st.sampled_from(POLICIES))
def test_the_words_are_the_plan(seeds: tuple[int, ...], workers: int, policy: str) -> None:
    sections, p = lowered(seeds, workers, policy)
    task, event = 0, 0
    for section, words in zip(sections, p.sections, strict=True):
        plan = section.schedule
        for number, queue in enumerate(plan.queues, words["first_queue"]):
            assert tuple(p.queue[p.bounds[number] : p.bounds[number + 1]] - task) == queue
        for local, waits in enumerate(plan.waits):
            one = p.tasks[task + local]
            found = p.waits[one["first_wait"] : one["first_wait"] + one["waits"]].tolist()
            assert found == [(event + w.event, plan.events.fanin[w.event], w.lag) for w in waits]
            signal = plan.events.signals[local]
            assert one["signal"] == (event + signal if signal >= 0 else -1)
            ranges = section.tasks.tasks[local].ranges
            assert one["ranges"][: len(ranges)].tolist() == [list(r) for r in ranges]
        task, event = task + len(plan.waits), event + len(plan.events.fanin)
    assert (task, event) == (len(p.tasks), p.num_events)
    assert p.bounds[-1] == len(p.queue)


@settings(max_examples=12)
@given(st.integers(0, 19), st.integers(1, 5))
def test_operands_are_where_their_tensors_were_placed(seed: int, workers: int) -> None:
    (section,), p = lowered((seed,), workers, "static")
    tasks = section.tasks
    for number, words in enumerate(p.tasks):
        tiling = tasks.tilings[tasks.node_index(number)]
        for operand, tile_map in enumerate((*tiling.omaps, *tiling.imaps), words["operands"]):
            tensor, slot = tile_map.tensor, p.slots[p.operands["slot"][operand]]
            assert slot.name == ("arena" if tensor.storage.kind is Kind.ARENA else tensor.storage.name)
            at = tensor.storage.start + tensor.layout.offset * tensor.dtype.itemsize
            assert p.operands["offset"][operand] == at < slot.nbytes


@pytest.mark.parametrize("policy", POLICIES)
def test_without_tasks_every_worker_has_an_empty_queue(policy: str) -> None:
    p = encode([lower(Graph((), (), ()), machine(3), policy).schedule])
    assert p.bounds.tolist() == [0, 0, 0, 0]
    assert not p.is_dynamic


def test_a_program_has_one_to_four_sections() -> None:
    plan = lower(Graph((), (), ()), machine(2)).schedule
    with pytest.raises(PlanError, match="not 5"):
        encode([plan] * 5)
    with pytest.raises(PlanError, match="not 0"):
        encode([])
