"""Real plans with the memory they run on, small enough to run thousands of times."""

import ctypes
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from oracle import cut_for, machine, raised
from torch import nn

from mkc.compiler import Compilation
from mkc.frontend.convert import Raised
from mkc.frontend.decoding import make_state, raise_decoding, raise_prompt
from mkc.frontend.executable import Executable
from mkc.ir.target import Target

Memory = list[NDArray[np.uint8]]


@dataclass(frozen=True, slots=True, eq=False)
class Plan:
    """A compilation, its target, and a launch: an array for each slot, steps for each section."""

    made: Compilation
    target: Target
    slots: Memory
    steps: tuple[int, ...]

    def memory(self) -> Memory:
        """A fresh copy. Slots of different sections that are one tensor stay one."""
        copies = {id(words): words.copy() for words in self.slots}
        return [copies[id(words)] for words in self.slots]


class MLP(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.up, self.down = nn.RMSNorm(16), nn.Linear(16, 48), nn.Linear(48, 16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = torch.relu(self.up(self.norm(x)))
        return x + self.down(h) * h[:, 16:32].sum(-1, keepdim=True)


class Attention(nn.Module):
    """A step of attention over its own cache, which it extends: state, sharing of heads, views of one product."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(16, 32), nn.Linear(16, 16)
        self.keys, self.values = (nn.Buffer(torch.zeros(1, 2, 6, 4)) for _ in range(2))
        self.position = nn.Buffer(torch.zeros(1, dtype=torch.int64))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.qkv(x).split((16, 8, 8), dim=-1)
        self.keys.index_copy_(2, self.position, k.view(1, 1, 2, 4).transpose(1, 2))
        self.values.index_copy_(2, self.position, v.view(1, 1, 2, 4).transpose(1, 2))
        seen = torch.arange(6) <= self.position
        heads = q.view(1, 1, 4, 4).transpose(1, 2)
        mixed = nn.functional.scaled_dot_product_attention(
            heads, self.keys, self.values, attn_mask=seen.view(1, 1, 1, 6), enable_gqa=True
        )
        self.position.add_(1)
        return self.out(mixed.transpose(1, 2).reshape(1, 16)) + x


class Recurrence(nn.Module):
    """A state that every step reads by tile and as a whole and overwrites, and a flag that ends the run."""

    def forward(self, state: torch.Tensor, count: torch.Tensor, done: torch.Tensor) -> None:
        turned = torch.cat((state[5:], state[:5]))
        mixed = torch.tanh(state @ (turned.T @ state) * 0.01 + turned)
        state.copy_(mixed + count)
        count.add_(1)
        done.copy_((count >= 3).all())


def _mlp() -> tuple[list[Raised], list[Any], tuple[int, ...]]:
    x = torch.randn(3, 16)
    return [raised(MLP().eval(), x)], [(x,)], (1,)


def _attention() -> tuple[list[Raised], list[Any], tuple[int, ...]]:
    x = torch.randn(1, 16)
    return [raised(Attention().eval(), x, loops=True)], [(x,)], (3,)


def _recurrence() -> tuple[list[Raised], list[Any], tuple[int, ...]]:
    inputs = torch.randn(16, 8), torch.zeros(1, dtype=torch.int64), torch.zeros((), dtype=torch.bool)
    return [raised(Recurrence(), *inputs, loops=True, until=2)], [inputs], (5,)


def _language() -> tuple[list[Raised], list[Any], tuple[int, ...]]:
    transformers = import_module("transformers")  # takes seconds
    config = transformers.Qwen3Config(
        vocab_size=24, hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, head_dim=8, max_position_embeddings=16, tie_word_embeddings=True, eos_token_id=None,
    )  # fmt: skip
    model = transformers.Qwen3ForCausalLM(config).eval().requires_grad_(False)
    state = make_state(model, 12, 2)
    state.prepare([[3, 9, 4]])
    return [raise_prompt(model, state, (), 2), raise_decoding(model, state, ())], [state.tensors, state.tensors], (2, 3)


def _streaming(batch: int = 1, page: int | None = None) -> tuple[list[Raised], list[Any], tuple[int, ...]]:
    """Decoding alone, in bfloat16: what Hopper's workers stream."""
    transformers = import_module("transformers")
    config = transformers.Qwen3Config(
        vocab_size=24, hidden_size=64, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, head_dim=64, max_position_embeddings=256, tie_word_embeddings=True, eos_token_id=None,
    )  # fmt: skip
    model = transformers.Qwen3ForCausalLM(config).eval().requires_grad_(False).to(torch.bfloat16)
    state = make_state(model, 192, 3, batch, page)
    for tensor in state.caches:
        tensor.copy_(torch.randn(tensor.shape))
    _, length, position, token, *_ = state.tensors
    length.fill_(63), token.fill_(7)
    position.copy_(62 - torch.arange(batch))  # the first sequence's third step begins a block of keys
    if state.pages:
        state.limit.fill_(192), state.table.copy_(torch.tensor(state.pages.share_out([192] * batch)))
    return [raise_decoding(model, state, ())], [state.tensors], (3,)


MODELS: dict[str, Callable[[], tuple[list[Raised], list[Any], tuple[int, ...]]]] = {
    "mlp": _mlp, "attention": _attention, "recurrence": _recurrence, "language": _language,
}  # fmt: skip
STREAMING = {"streaming": _streaming, "together": lambda: _streaming(2), "paged": lambda: _streaming(2, 128)}
STREAMED = [*(f"streaming-static-{workers}" for workers in (2, 3, 6)), "together-static-3", "paged-static-3"]
NAMES = [f"{model}-{policy}-{workers}" for model in MODELS for policy in ("static", "dynamic") for workers in (2, 3)]


@cache
def traced(model: str) -> tuple[list[Raised], list[Any], tuple[int, ...]]:
    torch.manual_seed(0)
    with torch.no_grad():
        return (MODELS | STREAMING)[model]()


@cache
def plan(name: str) -> Plan:
    """`model-policy-workers`."""
    model, policy, workers = name.split("-")
    sections, leaves, steps = traced(model)
    streams = model in STREAMING
    target = machine(int(workers), bytes_per_ns=0.5, streams=streams)  # slow, so that small tensors are cut
    with nullcontext() if streams else cut_for(3):
        executable = Executable(sections, target, torch.device("cpu"), policy)
    recorder = _Recorder(executable)
    executable.kernel = recorder  # type: ignore[misc, assignment]
    executable(*leaves, steps=steps)
    return Plan(executable.compilation, target, recorder.slots, steps)


class _Recorder:
    """A kernel that keeps what it was launched on."""

    def __init__(self, executable: Executable) -> None:
        self.program = executable.compilation.program
        self.slots: Memory = []

    def launch(self, addresses: Sequence[int], steps: Sequence[int], stream: int = 0) -> None:
        known: dict[int, NDArray[np.uint8]] = {}
        for address, slot in zip(addresses, self.program.slots, strict=True):
            if address not in known:
                raw = (ctypes.c_uint8 * slot.nbytes).from_address(address)
                known[address] = np.frombuffer(memoryview(raw), np.uint8).copy()
        self.slots = [known[address] for address in addresses]
