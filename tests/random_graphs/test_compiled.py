"""Random models give what PyTorch gives when they are compiled; four of them share a kernel, one after another."""

from random import Random

import pytest
import torch
from oracle import cut_for, machine, raised
from random_graphs.models import RandomModel, assert_like_pytorch

from mkc.frontend.executable import Executable

KERNELS = [*range(15), *(pytest.param(kernel, marks=pytest.mark.slow) for kernel in range(15, 400))]


@pytest.mark.parametrize("kernel", KERNELS)
def test_a_kernel_gives_what_pytorch_gives(kernel: int, monkeypatch: pytest.MonkeyPatch) -> None:
    if kernel % 8:
        monkeypatch.setenv("MKC_DEBUG", "1")  # builds three times faster
    rng = Random(kernel)
    models = [RandomModel(10_000 + 4 * kernel + i) for i in range(4)]
    target = machine((1, 2, 3, 7)[kernel % 4], rng.choice((20.0, 100.0, 1000.0)))
    with cut_for(rng.choice((1, 3, 4, 16))):
        graphs = [raised(model, *model.example_inputs) for model in models]
        executable = Executable(graphs, target, torch.device("cpu"), ("static", "dynamic")[kernel // 4 % 2])
    inputs = [model.example_inputs for model in models]
    first, again = executable(*inputs), executable(*inputs)
    for model, results, same in zip(models, first, again, strict=True):
        assert_like_pytorch(model, results)
        assert all(torch.equal(a, b) for a, b in zip(results, same, strict=True))
