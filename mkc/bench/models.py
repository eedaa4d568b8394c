"""A name -> an unmodified language model. Configurations of real models as plain numbers, filled with random weights."""

import re
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from mkc.errors import OptionError
from mkc.frontend.loading import load, refuse_beyond_memory

_QWEN3 = dict(
    model_type="qwen3", vocab_size=151936, head_dim=128, num_key_value_heads=8, max_position_embeddings=40960,
    rms_norm_eps=1e-6, rope_parameters={"rope_type": "default", "rope_theta": 1e6},
)  # fmt: skip

CONFIGURATIONS: dict[str, dict[str, Any]] = {
    "qwen3-0.6b": dict(
        _QWEN3, hidden_size=1024, intermediate_size=3072, num_hidden_layers=28, num_attention_heads=16, tie_word_embeddings=True
    ),
    "qwen3-1.7b": dict(
        _QWEN3, hidden_size=2048, intermediate_size=6144, num_hidden_layers=28, num_attention_heads=16, tie_word_embeddings=True
    ),
    "qwen3-8b": dict(
        _QWEN3, hidden_size=4096, intermediate_size=12288, num_hidden_layers=36, num_attention_heads=32, tie_word_embeddings=False
    ),
    "llama-3.2-1b": dict(
        model_type="llama", vocab_size=128256, hidden_size=2048, intermediate_size=8192, num_hidden_layers=16,
        num_attention_heads=32, num_key_value_heads=8, head_dim=64, max_position_embeddings=131072, rms_norm_eps=1e-5,
        tie_word_embeddings=True,
        rope_parameters={
            "rope_type": "llama3", "rope_theta": 5e5, "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        },
    ),
    "gemma-3-1b": dict(
        model_type="gemma3_text", vocab_size=262144, hidden_size=1152, intermediate_size=6912, num_hidden_layers=26,
        num_attention_heads=4, num_key_value_heads=1, head_dim=256, query_pre_attn_scalar=256, sliding_window=512,
        max_position_embeddings=32768, rms_norm_eps=1e-6, tie_word_embeddings=True,
    ),
    "qwen2.5-1.5b": dict(
        model_type="qwen2", vocab_size=151936, hidden_size=1536, intermediate_size=8960, num_hidden_layers=28,
        num_attention_heads=12, num_key_value_heads=2, max_position_embeddings=32768, rms_norm_eps=1e-6,
        tie_word_embeddings=True, rope_parameters={"rope_type": "default", "rope_theta": 1e6},
    ),
    "smollm2-135m": dict(
        model_type="llama", vocab_size=49152, hidden_size=576, intermediate_size=1536, num_hidden_layers=30,
        num_attention_heads=9, num_key_value_heads=3, head_dim=64, max_position_embeddings=8192, rms_norm_eps=1e-5,
        tie_word_embeddings=True, rope_parameters={"rope_type": "default", "rope_theta": 1e5},
    ),
    "tiny": dict(
        model_type="qwen3", vocab_size=96, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=16, max_position_embeddings=256, rms_norm_eps=1e-6, tie_word_embeddings=True,
        rope_parameters={"rope_type": "default", "rope_theta": 1e4},
    ),
}  # fmt: skip


def make(name: str, device: str, dtype: str | None) -> PreTrainedModel:
    """A named configuration with random weights, or a Hugging Face folder or id with its own; one that never ends its text.

    `dtype` by name; None is a checkpoint's own, for random weights bfloat16 on a GPU and float32 elsewhere.
    Raises OptionError, ModelError.
    """
    if name in CONFIGURATIONS:
        model = _random(CONFIGURATIONS[name], device, dtype or ("bfloat16" if device == "cuda" else "float32"))
    elif Path(name).is_dir() or re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", name):
        model = load(name, dtype or "auto", trust_remote_code=False)[0].to(device)
    else:
        raise OptionError(
            f"{name!r} is neither a folder, nor the id of a model on Hugging Face, nor one of {', '.join(CONFIGURATIONS)}"
        )
    for settings in (model.generation_config, model.config.get_text_config()):
        settings.eos_token_id = None
    return model.eval().requires_grad_(False)


def _random(numbers: dict[str, Any], device: str, dtype: str) -> PreTrainedModel:
    settings = dict(numbers)
    kind = settings.pop("model_type")
    config = AutoConfig.for_model(kind, **settings, bos_token_id=None, eos_token_id=None, pad_token_id=None)
    with torch.device("meta"):
        count = sum(p.numel() for p in AutoModelForCausalLM.from_config(config).parameters())
    wide = getattr(torch, dtype)
    refuse_beyond_memory(count * wide.itemsize, torch.device(device), "the model's parameters take")
    torch.manual_seed(0)
    with torch.device(device):
        made: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=wide)
    return made


def step_bytes(model: PreTrainedModel, context: float, batch: int = 1) -> int:
    """What a step of decoding must read: every weight once, of an embedding of its own a row for each sequence, and the caches."""
    config = model.config.get_text_config()
    table, head = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    weights = {id(p): p.numel() * p.element_size() for p in model.parameters()}
    if table is not head:
        weights[id(table)] = batch * table[0].numel() * table.element_size()
    return int(sum(weights.values()) + batch * context * _row_elements(config) * table.element_size())


def _row_elements(config: Any) -> int:
    """Elements of keys and values that a token has in all layers."""
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return int(2 * config.num_hidden_layers * heads * width)
