"""The interpreter keeps the device's protocol, and notices when a plan does not."""

from collections.abc import Sequence
from dataclasses import replace
from random import Random

import numpy as np
import pytest
from graphs import counter, doubled_and_summed
from numpy.typing import NDArray
from oracle import machine

from mkc.compiler import Compilation, compile_graphs
from mkc.errors import MegakernelHang
from mkc.ir.graph import Kind
from mkc.targets.cpu import CpuKernel
from mkc.targets.interpreter import Interpreter

Memory = list[NDArray[np.uint8]]
policies = pytest.mark.parametrize("policy", ["static", "dynamic"])


def memory(made: Compilation, **values: NDArray[np.generic]) -> Memory:
    known = {name: np.ascontiguousarray(v).reshape(-1).view(np.uint8).copy() for name, v in values.items()}
    return [known.get(slot.name, np.zeros(slot.nbytes, np.uint8)) for slot in made.program.slots]


def interpret(made: Compilation, words: Memory, steps: Sequence[int], seed: int) -> dict[str, bytes]:
    Interpreter(made.program, [s.tasks for s in made.sections], Random(seed)).run(words, steps)
    return {slot.name: w.tobytes() for slot, w in zip(made.program.slots, words, strict=True)}


def chain(policy: str = "static") -> tuple[Compilation, Memory]:
    rng = np.random.default_rng(0)
    made = compile_graphs([doubled_and_summed()], machine(4), policy)
    x, w = rng.standard_normal(256, np.float32), rng.standard_normal((256, 256), np.float32) / 16
    return made, memory(made, x=x, w=w)


@policies
def test_every_order_leaves_the_same_bytes(policy: str) -> None:
    made, words = chain(policy)
    assert len(made.program.tasks) == 8
    assert len({interpret(made, words, [1], seed)["out0"] for seed in range(20)}) == 1


def test_a_missing_wait_shows_in_some_order() -> None:
    made, words = chain()
    expected = interpret(made, words, [1], 0)["out0"]
    tasks = made.program.tasks.copy()
    tasks["waits"][-1] = 0
    broken = replace(made, program=replace(made.program, tasks=tasks))
    assert {interpret(broken, words, [1], seed)["out0"] == expected for seed in range(20)} == {True, False}


@policies
def test_a_lost_signal_is_a_hang_that_names_who_waits_and_for_whom(policy: str) -> None:
    made, words = chain(policy)
    waits = made.program.waits.copy()
    waits["fanin"] += 1
    broken = replace(made, program=replace(made.program, waits=waits))
    with pytest.raises(MegakernelHang, match=r"waited for task 4, linear_1\[0:64, 0:1\]; its event 0 had 4 of 5") as hang:
        interpret(broken, words, [1], 0)
    assert "linear_0[192:256, 0:1]" in str(hang.value)


@policies
@pytest.mark.parametrize("workers", [1, 2, 3])
@pytest.mark.parametrize(("steps", "done"), [(3, 3), (9, 5)])
def test_a_loop_ends_after_its_steps_or_when_its_flag_is_set(policy: str, workers: int, steps: int, done: int) -> None:
    made = compile_graphs([counter()], machine(workers), policy)
    start = dict(n=np.zeros(1, np.int64), stop=np.zeros(1, np.bool_), sums=np.zeros(64, np.float32))
    for seed in range(8):
        left = interpret(made, memory(made, **start), [steps], seed)
        assert np.frombuffer(left["n"], np.int64) == done
        assert set(np.frombuffer(left["sums"], np.float32)) == {done}


@policies
def test_a_loop_whose_flag_is_set_already_does_nothing(policy: str) -> None:
    made = compile_graphs([counter()], machine(3), policy)
    words = memory(made, n=np.zeros(1, np.int64), stop=np.ones(1, np.bool_), sums=np.zeros(64, np.float32))
    assert np.frombuffer(interpret(made, words, [9], 0)["n"], np.int64) == 0


@policies
def test_the_cpu_ends_a_loop_as_the_interpreter_does(policy: str) -> None:
    made = compile_graphs([counter(), counter()], machine(3), policy)
    start = dict(n=np.zeros(1, np.int64), stop=np.zeros(1, np.bool_), sums=np.zeros(64, np.float32))
    kernel = CpuKernel(made.program, made.source)
    ours = memory(made, **start)
    interpret(made, ours, [9, 2], 0)
    for _ in range(50):
        theirs = memory(made, **start)
        kernel.launch([w.ctypes.data for w in theirs], [9, 2])
        states = zip(made.program.slots, ours, theirs, strict=True)
        assert all(np.array_equal(a, b) for slot, a, b in states if slot.kind is Kind.STATE)


def test_a_task_outside_its_slot_is_refused() -> None:
    made, words = chain()
    with pytest.raises((ValueError, TypeError)):
        interpret(made, [w[:-4] for w in words], [1], 0)
