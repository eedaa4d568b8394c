"""Random models give what PyTorch gives, and the same bits in every legal order of their tasks. No compiler is needed."""

from random import Random

import pytest
import torch
from oracle import cut_for, interpreted, machine, raised
from random_graphs.models import RandomModel, assert_like_pytorch

SEEDS = [*range(140), *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(140, 3000))]


@pytest.mark.parametrize("seed", SEEDS)
def test_every_legal_order_gives_what_pytorch_gives(seed: int) -> None:
    rng = Random(seed)
    model = RandomModel(seed)
    graph = raised(model, *model.example_inputs)
    parts, bytes_per_ns = rng.choice((1, 3, 4, 16)), rng.choice((20.0, 100.0, 1000.0))
    runs = []
    for policy in ("static", "dynamic"):
        target = machine(rng.choice((1, 2, 3, 7)), bytes_per_ns)
        with cut_for(parts):
            executable = interpreted([graph], target, policy, rng)
        runs += [executable(model.example_inputs)[0] for _ in range(2)]
    assert_like_pytorch(model, runs[0])
    for other in runs[1:]:
        assert all(torch.equal(a, b) for a, b in zip(runs[0], other, strict=True))
