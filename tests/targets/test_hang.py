"""A wait that is never satisfied: an exception that names the task and who it waits for, and kernels that still run."""

import numpy as np
import pytest
from laws.test_interpreter import Memory, chain

from mkc.errors import MegakernelHang
from mkc.ir.program import Words
from mkc.targets.cpu import CpuKernel

LOST = 2  # linear_0[128:192, 0:1]


class Deaf(CpuKernel):
    """A kernel whose device never sees one task's signal, while the plan has it."""

    deaf = True

    def _tables(self, stamps: Words | None) -> dict[str, int]:
        self.words = self.program.tasks.copy()
        self.words["signal"][LOST] = -1
        tables = super()._tables(stamps)
        return {**tables, "tasks": self.words.ctypes.data} if self.deaf else tables


def launch(kernel: CpuKernel, words: Memory) -> np.ndarray:
    kernel.launch([w.ctypes.data for w in words], [1])
    (result,) = [w for slot, w in zip(kernel.program.slots, words, strict=True) if slot.name == "out0"]
    return result.copy()


@pytest.mark.parametrize("policy", ["static", "dynamic"])
def test_a_lost_signal_is_reported_and_the_next_kernel_runs(policy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    made, words = chain(policy)
    healthy, deaf = CpuKernel(made.program, made.source), Deaf(made.program, made.source)
    expected = launch(healthy, words)
    monkeypatch.setenv("MKC_DEADLINE", "0.2")
    for _ in range(2):
        with pytest.raises(MegakernelHang, match=r"gave up after 0\.2 s.*waited for task \d+, linear_1.*had 3 of 4") as hang:
            launch(deaf, words)
        assert "linear_0[128:192, 0:1]" in str(hang.value)
    monkeypatch.setenv("MKC_DEADLINE", "20")
    assert np.array_equal(launch(healthy, words), expected)
    deaf.deaf = False
    assert np.array_equal(launch(deaf, words), expected)
