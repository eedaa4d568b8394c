"""Kernels that lose time at random around waits and signals give the same bits in every run, and those of an undisturbed kernel."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from laws.test_interpreter import chain
from oracle import machine
from torch import Tensor, nn

import mkc
from mkc import targets
from mkc.targets.cpu import CpuKernel

ADDER = Path(__file__).parents[2] / "examples" / "adder" / "model"
DEVICES = ["cpu", pytest.param("cuda", marks=[pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")])]
Run = Callable[[], list[Tensor]]  # one launch, and all that it left


def cheap(device: str) -> Any:
    """A target on which small tensors are cut too: more workers than cores on the host, the SMs there are on a GPU."""
    return machine(5) if device == "cpu" else replace(targets.named(device), task_ns=1.0, event_ns=1.0)


def compiled(model: Any, inputs: tuple[Tensor, ...], device: str, policy: str) -> Run:
    inputs = tuple(x.to(device) for x in inputs)
    fast = mkc.compile(model, inputs, target=cheap(device), policy=policy, fallback="error")
    return lambda: [fast(*inputs)]


def mlp(device: str, policy: str) -> Run:
    """y = x + W f(V x), several layers deep: read whole by one task and tile by tile by others."""
    layers = [nn.Sequential(nn.Linear(96, 250), nn.GELU(), nn.Linear(250, 96)) for _ in range(3)]

    class Deep(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList(layers)

        def forward(self, x: Tensor) -> Tensor:
            for layer in self.layers:
                x = torch.sin(x) + layer(x)
            return x

    return compiled(Deep().eval().requires_grad_(False).to(device), (torch.randn(3, 96),), device, policy)


def attention(device: str, policy: str) -> Run:
    """Rows appended to a cache, then attention whose keys are shared out among tasks, and put together again."""
    q, new, position = torch.randn(1, 4, 1, 64), torch.randn(1, 2, 1, 64), torch.tensor([517])
    cache = torch.randn(1, 2, 700, 64)

    def step(q: Tensor, new: Tensor, position: Tensor, cache: Tensor) -> Tensor:
        keys = cache.index_copy(2, position, new)
        sees = torch.arange(700, device=q.device)[None, None, None] <= position
        return F.scaled_dot_product_attention(q, keys, keys, sees, enable_gqa=True).relu().sum(-1).sin()

    return compiled(step, (q, new, position, cache), device, policy)


def adder(device: str, policy: str) -> Run:
    """A whole answer: two sections, a loop inside the kernel with a verdict for each step, caches from step to step."""
    lm = mkc.CausalLM.from_pretrained(str(ADDER), dtype=torch.float32, device=device, max_length=32, policy=policy, target=cheap(device))
    ids = lm.tokenizer("12+34=")["input_ids"]

    def run() -> list[Tensor]:
        return [torch.tensor(lm.generate_ids(ids, 8)), *(cache[:, :, : len(ids) + 1].clone() for cache in lm.state.caches)]

    return run


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("policy", ["static", "dynamic"])
@pytest.mark.parametrize(("plan", "often"), [(mlp, 2000), (attention, 2000), (adder, 1000)])
def test_delays_change_no_bit(
    plan: Callable[[str, str], Run], often: int, policy: str, device: str, monkeypatch: pytest.MonkeyPatch, pytestconfig: pytest.Config
) -> None:
    """10,000 runs in all with --slow; 300 without. On a GPU 1,000."""
    torch.manual_seed(0)
    expected = plan(device, policy)()
    torch.manual_seed(0)
    monkeypatch.setenv("MKC_DELAY", "1")
    run = plan(device, policy)
    runs = often // 10 if device == "cuda" else often if pytestconfig.getoption("--slow") else often // 33
    for number in range(runs):
        left = run()
        assert all(torch.equal(a, b) for a, b in zip(left, expected, strict=True)), f"run {number} differs"


@pytest.mark.parametrize("policy", ["static", "dynamic"])
def test_delays_show_a_wait_that_is_missing(policy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """So the test above can fail: some of 300 runs differ. Drawing tickets orders much by itself, so all waits go there."""
    monkeypatch.setenv("MKC_DELAY", "1")
    made, words = chain(policy)
    tasks = made.program.tasks.copy()
    tasks["waits"][-1 if policy == "static" else slice(None)] = 0
    broken = CpuKernel(replace(made.program, tasks=tasks), made.source)
    (out,) = [w for slot, w in zip(made.program.slots, words, strict=True) if slot.name == "out0"]
    (arena,) = [w for slot, w in zip(made.program.slots, words, strict=True) if slot.name == "arena"]
    found = set()
    for _ in range(300):
        arena.fill(0xFF)
        broken.launch([w.ctypes.data for w in words], [1])
        found.add(out.tobytes())
    assert len(found) > 1
