"""Random models, cut by random cost models, for 1 to 264 workers, with both policies: what PyTorch computes, whatever the plan."""

from random import Random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import interpreted, raised
from random_graphs.models import RandomModel, assert_like_pytorch

from mkc.frontend.executable import Executable
from mkc.ir.target import Target
from mkc.passes.schedule import POLICIES

rates = st.sampled_from([0.001, 0.1, 1.0, 20.0, 1000.0])
times = st.sampled_from([0.01, 1.0, 80.0, 5000.0])


def targets(most: int) -> st.SearchStrategy[Target]:
    """Machines that there are not: fast and slow, with dear and cheap tasks."""
    return st.builds(
        Target, st.just("cpu"), st.just("any"), st.integers(1, most), st.just(1), st.sampled_from([4096, 32 * 1024]),
        rates, rates, times, times,
    )  # fmt: skip


@settings(max_examples=settings.get_profile("mkc").max_examples // 2)
@given(st.integers(50_000, 60_000), targets(264), st.sampled_from(POLICIES), st.integers(0, 9))
def test_every_plan_computes_what_pytorch_computes(seed: int, target: Target, policy: str, order: int) -> None:
    model = RandomModel(seed)
    graph = raised(model, *model.example_inputs)
    assert_like_pytorch(model, interpreted([graph], target, policy, Random(order))(model.example_inputs)[0])


def debug_kernel(seed: int, target: Target, policy: str) -> tuple[RandomModel, Executable]:
    model = RandomModel(seed)
    return model, Executable([raised(model, *model.example_inputs)], target, torch.device("cpu"), policy)


@settings(max_examples=settings.get_profile("mkc").max_examples // 10)
@given(st.integers(60_000, 70_000), targets(16), st.sampled_from(POLICIES))
def test_every_plan_runs_on_more_threads_than_there_are_cores(seed: int, target: Target, policy: str) -> None:
    """Held up at random, five times, with the same bits."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MKC_DEBUG", "1")
        patch.setenv("MKC_DELAY", "1")
        model, executable = debug_kernel(seed, target, policy)
        runs = [executable(model.example_inputs)[0] for _ in range(5)]
    assert_like_pytorch(model, runs[0])
    for run in runs[1:]:
        assert all(torch.equal(a.view(torch.uint8), b.view(torch.uint8)) for a, b in zip(run, runs[0], strict=True))
