"""A machine -> Costs. A second of two small programs: a long read, by one worker and by all; a chain of tasks, on one and between two."""

import time
from dataclasses import replace

import torch
from torch import nn

from mkc import targets
from mkc.frontend.convert import convert
from mkc.frontend.executable import Executable
from mkc.frontend.trace import trace
from mkc.ir.cost import Costs
from mkc.ir.target import Target

DEPTH = 1024  # of a row that is read
READ_BYTES = {"cpu": 1 << 27, "cuda": 1 << 29}  # more than a cache holds
WIDTH, LINKS = 16, 32  # of a chain: elements that a task reads and writes, tasks on each worker in a step
REPEATS = 5
LEAST_NS = 1.0  # a difference of noise
MOST_STEPS = 1 << 16  # more in a launch than in another


def measure(device: torch.device) -> Costs:
    """Of the CPU or GPU that `device` is. Building the two programs comes before, unless they were built already."""
    target = targets.named(device.type, device.index)
    target = replace(target, streams=False, task_ns=LEAST_NS, event_ns=LEAST_NS)  # so that everything is cut for all workers
    nbytes = READ_BYTES[device.type]
    with torch.no_grad():
        read, row = _Read(nbytes, device).eval(), torch.zeros(1, nbytes // (4 * DEPTH), device=device)
        alone, together = (nbytes / _step_ns(read, row, replace(target, workers=n)) for n in (1, target.workers))
        chain, link = _Chain(device).eval(), torch.zeros(1, WIDTH, device=device)
        task, both = (_step_ns(chain, link, replace(target, workers=n)) / LINKS for n in (1, 2))
    return Costs(alone, together, task, max(both - task, LEAST_NS))


class _Read(nn.Module):
    """All of a weight [N, DEPTH]."""

    def __init__(self, nbytes: int, device: torch.device) -> None:
        super().__init__()
        self.weight = nn.Buffer(torch.zeros(nbytes // (4 * DEPTH), DEPTH, device=device))
        self.row = nn.Buffer(torch.zeros(1, DEPTH, device=device))

    def forward(self, out: torch.Tensor) -> None:
        out.copy_(self.row @ self.weight.T)


class _Chain(nn.Module):
    """Tasks of next to no work, each of which reads what all workers made before."""

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self.weight = nn.Buffer(torch.zeros(WIDTH, WIDTH, device=device))

    def forward(self, state: torch.Tensor) -> None:
        row = state
        for _ in range(LINKS):
            row = row @ self.weight.T
        state.copy_(row)


def _step_ns(module: nn.Module, state: torch.Tensor, target: Target) -> float:
    """Of one step: what more steps in a launch take longer, so many that they take longer than a launch with one of them. On a
    busy machine the difference would be noise otherwise."""
    run = Executable([convert(trace(module, (state,), {}), "fit", loops=True)], target, state.device)
    one, more = _launch_ns(run, state, 1), 2
    while (taken := _launch_ns(run, state, 1 + more) - one) < one and more < MOST_STEPS:
        more *= 2
    return max(taken, LEAST_NS) / more


def _launch_ns(run: Executable, state: torch.Tensor, steps: int) -> int:
    """The shortest of a few launches. One ends when the last worker has left, on a GPU too."""

    def once() -> int:
        start = time.perf_counter_ns()
        run([state], steps=[steps])
        return time.perf_counter_ns() - start

    return min(once() for _ in range(REPEATS))
