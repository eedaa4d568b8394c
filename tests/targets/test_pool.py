"""The threads behind the CPU target: shared by kernels and Python threads, gone after a fork, the same bits every time."""

import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Event

import pytest
import torch
from oracle import machine
from torch import nn

import mkc

WIDTHS = {2: 100, 7: 130, 3: 250}  # by number of workers


def kernel(workers: int, policy: str = "static") -> tuple[Callable[[torch.Tensor], torch.Tensor], torch.Tensor, torch.Tensor]:
    """A compiled model, an input, and what it should give."""
    torch.manual_seed(workers)
    width = WIDTHS[workers]
    model = nn.Sequential(nn.Linear(width, 64), nn.GELU(), nn.Linear(64, width)).eval().requires_grad_(False)
    x = torch.randn(3, width)
    return mkc.compile(model, x, target=machine(workers), policy=policy), x, model(x)


@pytest.mark.parametrize("policy", ["static", "dynamic"])
def test_a_thousand_launches_give_the_same_bits(policy: str) -> None:
    run, x, expected = kernel(3, policy)
    first = run(x)
    torch.testing.assert_close(first, expected, rtol=1e-4, atol=1e-5)
    assert all(torch.equal(run(x), first) for _ in range(1000))


def test_kernels_with_more_and_fewer_workers_take_turns() -> None:
    kernels = [kernel(workers) for workers in (2, 7, 3)]
    for _ in range(100):
        for run, x, expected in kernels:
            torch.testing.assert_close(run(x), expected, rtol=1e-4, atol=1e-5)


def test_python_threads_launch_two_kernels_at_once() -> None:
    kernels = [kernel(2), kernel(7, "dynamic")]
    firsts = [run(x) for run, x, _ in kernels]

    def all_the_same(number: int) -> bool:
        run, x, _ = kernels[number % 2]
        return all(torch.equal(run(x), firsts[number % 2]) for _ in range(200))

    with ThreadPoolExecutor(4) as threads:  # two of them on each kernel
        assert all(threads.map(all_the_same, range(4)))


def test_workers_that_share_a_core_hand_over_before_their_slice_ends() -> None:
    layers, width, cores = 40, 64, os.sched_getaffinity(0)
    torch.manual_seed(0)
    model = nn.Sequential(*(nn.Linear(width, width) for _ in range(layers))).eval().requires_grad_(False)
    x = torch.randn(1, width)
    run = mkc.compile(model, x, target=machine(2))
    run(x)  # the threads are there
    threads = [int(name) for name in os.listdir("/proc/self/task")]
    try:
        for thread in threads:
            os.sched_setaffinity(thread, {min(cores)})
        taken = min(cpu_seconds(lambda: run(x)) for _ in range(30))
    finally:
        for thread in threads:
            os.sched_setaffinity(thread, cores)
    assert taken / layers < 1e-3  # a slice is some milliseconds; alone on a machine it is 15 us, beside other programs 200


def cpu_seconds(work: Callable[[], object]) -> float:
    """Of all threads, which other programs on the machine change little."""
    start = time.process_time()
    work()
    return time.process_time() - start


def test_a_forked_child_gets_threads_of_its_own() -> None:
    run, x, _ = kernel(3)
    first = run(x)
    child = os.fork()
    if child == 0:
        os._exit(0 if torch.equal(run(x), first) else 1)
    assert _exit_code(child) == 0
    assert torch.equal(run(x), first)


def test_a_fork_waits_for_the_launches_of_other_threads() -> None:
    """Else the child would have half a launch, and locks that nobody in it releases."""
    kernels = [kernel(3), kernel(7, "dynamic")]
    firsts, stop = [run(x) for run, x, _ in kernels], Event()

    def launch(number: int) -> None:
        while not stop.is_set():
            kernels[number][0](kernels[number][1])

    with ThreadPoolExecutor(2) as threads:
        busy = [threads.submit(launch, number) for number in range(2)]
        children = []
        for _ in range(20):
            child = os.fork()
            if child == 0:
                right = all(torch.equal(run(x), first) for (run, x, _), first in zip(kernels, firsts, strict=True))
                os._exit(0 if right else 1)
            children.append(_exit_code(child))
        stop.set()
        assert [future.result() for future in busy] == [None, None]
    assert children == [0] * 20


def _exit_code(child: int) -> int:
    for _ in range(3000):
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    os.kill(child, 9)
    os.waitpid(child, 0)
    return -1
