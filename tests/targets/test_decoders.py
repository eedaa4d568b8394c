"""Decoders of many kinds on a GPU: their weights stream, and what they answer is as near to float64 as eager's."""

from typing import Any

import pytest
import torch
from devices import on_gpu
from laws.test_stream import MODELS, tiny

import mkc
from mkc.bench.grading import grade_at
from mkc.numerics import grade_answer

DEEP = {  # whose batches of weights take turns: 7 and 14 fragments, 9 and 28
    "1792": lambda: tiny("Llama", hidden_size=1792, intermediate_size=3584, vocab_size=9001),
    "2304": lambda: tiny("Qwen2", hidden_size=2304, intermediate_size=6912, vocab_size=9000, num_attention_heads=36),
}
ODD = {  # of which tiles pass side by side, four and two
    "576": lambda: tiny("Llama", hidden_size=576, intermediate_size=1536, vocab_size=12001, num_attention_heads=9, num_key_value_heads=3),
    "1152": lambda: tiny("Qwen2", hidden_size=1152, intermediate_size=3072, vocab_size=20001, num_attention_heads=9, num_key_value_heads=3),
}
KINDS = MODELS | DEEP | ODD


TOGETHER = ("qwen2", "gemma2", "gemma3", "mistral", "gpt-neox", "granite", "llama, biased", "phi", "olmo2", "starcoder2", "1152")


def lm(kind: str, device: str, batch: int = 1) -> Any:
    return mkc.CausalLM(KINDS[kind]().to(device), max_length=192, batch=batch)


@on_gpu
@pytest.mark.parametrize("kind", KINDS)
def test_a_decoder_streams_and_is_as_near_to_float64_as_eager(kind: str) -> None:
    made = lm(kind, "cuda")
    assert made.compilation.program.streams
    for length in (3, 61, 130):
        graded = grade_answer(made, [(7 * i + length) % 70 for i in range(length)], 8)
        assert graded.passed, f"{kind}, {length} tokens: {graded}"


@on_gpu
@pytest.mark.parametrize("kind", TOGETHER)
def test_sequences_together_are_as_near_to_float64_as_eager(kind: str) -> None:
    made = lm(kind, "cuda", batch=3)
    assert made.compilation.program.streams
    for cache in made.state.caches:
        cache.normal_(generator=torch.Generator("cuda").manual_seed(0))
    for context in (3, 61, 130):
        graded = grade_at(made, context, 8)
        assert graded.passed, f"{kind}, context {context}: {graded}"
