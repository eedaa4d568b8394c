"""What goes wrong in a launch: an exception that says who waits for whom and where they stand, and kernels that still run."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from laws.test_interpreter import Memory, chain
from oracle import machine

from mkc.compiler import compile_graphs
from mkc.errors import MegakernelHang
from mkc.ir.program import Words
from mkc.targets import cpu
from mkc.targets.cpu import CpuKernel

LOST = 2  # linear_0[128:192, 0:1]
Tables = dict[str, Words]

policies = pytest.mark.parametrize("policy", ["static", "dynamic"])


class Broken(CpuKernel):
    """A kernel whose device sees other words than the plan has."""

    change: Callable[[Tables], None] | None = None
    threads: int | None = None  # how many workers come

    def _tables(self, stamps: Words | None) -> dict[str, int]:
        tables = super()._tables(stamps)
        self.words = {name: getattr(self.program, name).copy() for name in ("tasks", "bounds", "queue")}
        if self.change:
            self.change(self.words)
        return {**tables, **{name: words.ctypes.data for name, words in self.words.items()}}

    def _run_pool(self, worker: object, words: Words) -> None:
        count = self.threads or self.program.num_workers
        cpu._pool().mkc_pool_run(worker, words.ctypes.data, count)


def lost_signal(tables: Tables) -> None:
    tables["tasks"]["signal"][LOST] = -1


def crashed_worker(tables: Tables) -> None:
    """Worker 2 finds nothing in its queue and leaves."""
    first, last = tables["bounds"][2:4].tolist()
    tables["queue"][first:] = np.roll(tables["queue"][first:], first - last)
    tables["bounds"][3:] -= last - first


def launch(kernel: CpuKernel, words: Memory) -> Any:
    kernel.launch([w.ctypes.data for w in words], [1])
    (result,) = [w for slot, w in zip(kernel.program.slots, words, strict=True) if slot.name == "out0"]
    return result.copy()


def hang(kernel: CpuKernel, words: Memory, monkeypatch: pytest.MonkeyPatch) -> str:
    """The report of a launch that fails the same way twice."""
    with monkeypatch.context() as impatient:
        impatient.setenv("MKC_DEADLINE", "0.2")
        said = []
        for _ in range(2):
            with pytest.raises(MegakernelHang, match=r"gave up after 0\.2 s") as caught:
                launch(kernel, words)
            said.append(str(caught.value))
    print(said[-1])
    return said[-1]


@policies
def test_a_lost_signal_is_reported_and_the_next_launch_is_right(policy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    made, words = chain(policy)
    healthy, broken = CpuKernel(made.program, made.source), Broken(made.program, made.source)
    expected = launch(healthy, words)
    broken.change = lost_signal
    said = hang(broken, words, monkeypatch)
    assert "linear_1" in said
    assert "had 3 of 4" in said
    assert "task 2, linear_0[128:192, 0:1]" in said
    assert np.array_equal(launch(healthy, words), expected)
    broken.change = None
    assert np.array_equal(launch(broken, words), expected)


def test_a_worker_that_leaves_early_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    made, words = chain()
    broken = Broken(made.program, made.source)
    expected = launch(broken, words)
    broken.change = crashed_worker
    said = hang(broken, words, monkeypatch)
    assert "place 1 in the queue of worker 2" in said
    assert "worker 2 has taken up no task" in said
    assert "worker 0 has taken up task 4, linear_1[0:64, 0:1], in step 0" in said
    broken.change = None
    assert all(np.array_equal(launch(broken, words), expected) for _ in range(5))


@policies
def test_a_worker_that_never_comes_is_reported_and_leaves_nothing_behind(policy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody is the last to leave then, who would have cleared the counters."""
    made, words = chain(policy)
    sections = compile_graphs([s.graph for s in made.sections] * 2, machine(4), policy)
    by_name = {slot.name: w for slot, w in zip(made.program.slots, words, strict=True)}
    twice = [by_name[slot.name].copy() for slot in sections.program.slots]
    broken = Broken(sections.program, sections.source)

    def run() -> Any:
        broken.launch([w.ctypes.data for w in twice], [1, 1])
        (result,) = [w for slot, w in zip(broken.program.slots, twice, strict=True) if (slot.name, slot.section) == ("out0", 1)]
        return result.copy()

    expected = run()
    broken.threads = 3
    monkeypatch.setenv("MKC_DEADLINE", "0.2")
    with pytest.raises(MegakernelHang, match="worker 3 has taken up no task") as caught:
        run()
    assert policy == "static" or "waited for the end of a section" in str(caught.value)
    monkeypatch.setenv("MKC_DEADLINE", "20")
    broken.threads = None
    assert all(np.array_equal(run(), expected) for _ in range(5))


def test_many_more_workers_than_cores_are_slow_and_right() -> None:
    made, words = chain()
    expected = launch(CpuKernel(made.program, made.source), words)
    for policy in ("static", "dynamic"):
        crowd = compile_graphs([s.graph for s in made.sections], machine(64), policy)
        assert crowd.program.num_workers == 64
        np.testing.assert_allclose(
            launch(CpuKernel(crowd.program, crowd.source), words).view(np.float32), expected.view(np.float32), rtol=1e-5, atol=1e-5
        )
