"""stream: the decode step of an unmodified model becomes a few streams, and says the same as before in every legal order."""

from random import Random
from typing import Any
from unittest import mock

import pytest
import torch
from oracle import interpreted, machine

from mkc.frontend.convert import Raised
from mkc.frontend.decoding import State, make_state, raise_sections
from mkc.ir.graph import Graph
from mkc.passes.fuse import fuse
from mkc.passes.stream import stream

transformers = pytest.importorskip("transformers")


def tiny(kind: str, **changes: Any) -> Any:
    """A random bfloat16 model of one layer, unless told otherwise."""
    torch.manual_seed(0)
    sizes = dict(
        vocab_size=96, hidden_size=256, intermediate_size=320, num_hidden_layers=1, num_attention_heads=4,
        num_key_value_heads=2, head_dim=64, max_position_embeddings=256, tie_word_embeddings=True, pad_token_id=0,
        eos_token_id=None, bos_token_id=None,
    )  # fmt: skip
    config = getattr(transformers, f"{kind}Config")(**(sizes | changes))
    model = getattr(transformers, f"{kind}ForCausalLM")(config).eval().requires_grad_(False)
    for parameter in model.parameters():
        parameter.mul_(3.0) if parameter.dim() > 1 else parameter.add_(0.2 * torch.randn_like(parameter))
    return model.to(torch.bfloat16)


MODELS = {
    "qwen3": lambda: tiny("Qwen3"),
    "qwen3 of two layers": lambda: tiny("Qwen3", num_hidden_layers=2, hidden_size=320, tie_word_embeddings=False),
    "llama": lambda: tiny("Llama", hidden_size=576, num_attention_heads=9, num_key_value_heads=3),
    "llama with gelu": lambda: tiny("Llama", hidden_act="gelu_pytorch_tanh"),
    "qwen2": lambda: tiny("Qwen2", num_key_value_heads=1),
    "gemma": lambda: tiny("Gemma"),
    "narrow heads": lambda: tiny("Llama", head_dim=32),
}
ROOM = 192


def decoding(model: Any) -> tuple[State, Raised]:
    state = make_state(model, ROOM, 4)
    return state, raise_sections(model, state, (), 4)[1]


def streamed(model: Any, workers: int = 132) -> Graph:
    return stream(fuse(decoding(model)[1].graph), machine(workers, streams=True))


def decoded(model: Any, workers: int, streams: bool, seed: int, steps: int, start: int) -> tuple[list[int], tuple[torch.Tensor, ...]]:
    """The tokens of some steps after a cache that holds anything up to `start`, and the caches."""
    state, raised = decoding(model)
    for cache in state.caches:
        cache.copy_(torch.randn(cache.shape, generator=torch.Generator().manual_seed(1)))
    _, length, position, token, *_ = state.tensors
    length.fill_(start + 1), position.fill_(start), token.fill_(7)
    with mock.patch("mkc.compiler.render"):  # the interpreter needs no page
        run = interpreted([raised], machine(workers, streams=streams), order=Random(seed))
    run(list(state.tensors), steps=[steps])
    return state.text(start + 1, steps), state.caches


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize(("workers", "start"), [(5, 62), (132, 130)])
def test_a_streamed_plan_decodes_as_the_plain_one(kind: str, workers: int, start: int) -> None:
    model = MODELS[kind]()
    plain, caches = decoded(model, 2, False, 0, 4, start)
    for seed in range(2):
        tokens, kept = decoded(model, workers, True, seed, 4, start)
        assert tokens == plain
        for mine, theirs in zip(kept, caches, strict=True):
            torch.testing.assert_close(mine, theirs, rtol=0.05, atol=0.06)
