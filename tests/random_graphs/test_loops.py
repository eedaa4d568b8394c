"""Several steps in one launch leave what as many calls of PyTorch leave, whoever runs ahead."""

from copy import deepcopy
from random import Random

import pytest
import torch
from oracle import cut_for, interpreted, machine, raised
from random_graphs.models import RandomLoop

from mkc.frontend.executable import Executable

STEPS = 4
SEEDS = [*range(30), *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(30, 1000))]


def stepped(model: RandomLoop) -> tuple[torch.Tensor, ...]:
    """The results of the last step and the state it left, in double precision."""
    model = deepcopy(model).double()
    for _ in range(STEPS):
        results = model(*(x.double() for x in model.example_inputs))
    return (*results, model.state)


def assert_close(model: RandomLoop, results: tuple[torch.Tensor, ...], expected: tuple[torch.Tensor, ...]) -> None:
    for ours, truth in zip((*results, model.state), expected, strict=True):
        torch.testing.assert_close(ours, truth.float(), rtol=1e-3, atol=1e-3 * float(1 + truth.abs().max()))


@pytest.mark.parametrize("seed", SEEDS)
def test_steps_follow_each_other_in_every_legal_order(seed: int) -> None:
    rng = Random(seed)
    model = RandomLoop(seed)
    start, expected = model.state.clone(), stepped(model)
    graph = raised(model, *model.example_inputs, loops=True)
    for policy in ("static", "dynamic"):
        with cut_for(rng.choice((1, 3, 4, 16))):
            executable = interpreted([graph], machine(rng.choice((1, 2, 3, 7))), policy, rng)
        model.state.copy_(start)
        assert_close(model, executable(model.example_inputs, steps=[STEPS])[0], expected)


@pytest.mark.parametrize("kernel", [*range(4), *(pytest.param(k, marks=pytest.mark.slow) for k in range(4, 100))])
def test_a_kernel_steps_as_pytorch_does(kernel: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MKC_DEBUG", "1")
    models = [RandomLoop(20_000 + 4 * kernel + i) for i in range(4)]
    expected = [stepped(model) for model in models]
    with cut_for(4):
        graphs = [raised(model, *model.example_inputs, loops=True) for model in models]
        executable = Executable(graphs, machine((3, 7)[kernel % 2]), torch.device("cpu"), ("static", "dynamic")[kernel // 2 % 2])
    results = executable(*[model.example_inputs for model in models], steps=[STEPS] * 4)
    for model, made, truth in zip(models, results, expected, strict=True):
        assert_close(model, made, truth)
