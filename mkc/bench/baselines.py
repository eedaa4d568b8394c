"""A model and a context -> what else could decode it: callables that run a number of steps from that context on."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import StaticCache

from mkc.bench.lean import Block, Lean

FIRST = 1  # the token that stands at the context's end

REDUCE, TUNED = "reduce-overhead", "max-autotune"
CHOICES = {
    "none": (),
    "eager": ("eager",),
    "compile": ("eager", f"compile {REDUCE}"),
    "lean": ("eager", f"lean {REDUCE}"),
    "all": (
        "eager", f"compile {REDUCE}", f"compile {TUNED}",
        f"lean {REDUCE}", f"lean {TUNED}", f"lean-sdpa {REDUCE}", f"lean-sdpa {TUNED}",
    ),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Run:
    """A way to decode. `rewind` goes back to the context's end, and is not timed; `go` takes a number of steps from there."""

    rewind: Callable[[], None]
    go: Callable[[int], None]


def make(name: str, model: Any, caches: Sequence[torch.Tensor], context: int, room: int) -> Run:
    """A baseline by its name in CHOICES. `caches` are keys and values [B, ...] of each layer in turn, full up to `context`."""
    kind, _, mode = name.partition(" ")
    if kind.startswith("lean"):
        return _lean(Lean(model, room, native=kind == "lean-sdpa", batch=len(caches[0])), caches, context, mode)
    return _hugging_face(model, caches, context, room, mode)


def _hugging_face(model: Any, caches: Sequence[torch.Tensor], context: int, room: int, mode: str) -> Run:
    """The model over a StaticCache; compiled whole, the choice of the token too, if there is a mode."""
    cache = StaticCache(config=model.config, max_cache_len=room)
    for layer, keys, values in zip(cache.layers, caches[::2], caches[1::2], strict=True):
        layer.lazy_initialization(keys, values)
        layer.keys[:, :, :context] = keys[:, :, :context]
        layer.values[:, :, :context] = values[:, :, :context]
    token = torch.zeros(len(caches[0]), 1, dtype=torch.int64, device=model.device)
    position = torch.zeros(1, 1, dtype=torch.int64, device=model.device)

    _hold(token, position)

    def step(token: torch.Tensor, position: torch.Tensor) -> torch.Tensor:
        result = model(input_ids=token, position_ids=position, past_key_values=cache, use_cache=True, logits_to_keep=1)
        found: torch.Tensor = result.logits[:, -1].argmax(-1, keepdim=True)
        token.copy_(found)
        position.add_(1)
        return found

    one = torch.compile(step, mode=mode, fullgraph=True, dynamic=False) if mode else step

    def rewind() -> None:
        for counted in [layer.cumulative_length for layer in cache.layers]:
            counted.fill_(context)
        token.fill_(FIRST)
        position.fill_(context)

    def go(steps: int) -> None:
        for _ in range(steps):
            _begin_step()
            one(token, position)

    return Run(rewind, go)


def _lean(lean: Lean, caches: Sequence[torch.Tensor], context: int, mode: str) -> Run:
    for block, keys, values in zip(lean.blocks, caches[::2], caches[1::2], strict=True):
        assert isinstance(block, Block)
        block.keys[:, :, :context] = keys[:, :, :context]
        block.values[:, :, :context] = values[:, :, :context]
    _hold(*lean.buffers())
    one = torch.compile(lean, mode=mode, fullgraph=True, dynamic=False)

    def rewind() -> None:
        lean.token.fill_(FIRST)
        lean.position.fill_(context)

    def go(steps: int) -> None:
        for _ in range(steps):
            _begin_step()
            one()

    return Run(rewind, go)


def _hold(*memory: torch.Tensor) -> None:
    """Tensors whose address stays: CUDA graphs may write them in place."""
    for tensor in memory:
        torch._dynamo.mark_static_address(tensor)


def _begin_step() -> None:
    torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]


def plain_read(nbytes: int, device: torch.device) -> Run:
    """The floor: as many bytes as a step reads, read once and summed."""
    memory = torch.empty(-(-nbytes // 4), dtype=torch.float32, device=device).uniform_()

    def go(steps: int) -> None:
        for _ in range(steps):
            memory.sum()

    return Run(lambda: None, go)
