"""A Hugging Face folder or id -> an unmodified model and its tokenizer. What stands in a folder is not trusted."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedConfig, PreTrainedModel

from mkc.errors import ModelError

MOST_OF_A_KIND = 4096  # layers, heads, experts
LARGEST = 2**31  # of any other whole number


def load(path: str, dtype: torch.dtype | str, trust_remote_code: bool) -> tuple[PreTrainedModel, Any]:
    """Weights come from safetensors alone, which cannot carry code. Raises ModelError, whatever is in the folder."""
    given = {"trust_remote_code": trust_remote_code}
    with _explained(path):
        config = _config(path, given)
        _refuse_larger_than_memory(config, given)
        tokenizer = AutoTokenizer.from_pretrained(path, **given)
        model, found = AutoModelForCausalLM.from_pretrained(
            path, config=config, dtype=dtype, use_safetensors=True, output_loading_info=True, **given
        )
    wrong = [str(name) for kind in ("missing_keys", "mismatched_keys") for name in found.get(kind, ())]
    if wrong:
        raise ModelError(f"{path!r} has no fitting weights for {', '.join(sorted(wrong)[:4])} ({len(wrong)} in all)")
    return model, tokenizer


def outline(path: str) -> PreTrainedModel:
    """The model on the meta device: shapes without memory, from its config alone. Raises ModelError."""
    given = {"trust_remote_code": False}
    with _explained(path):
        return _shapes(_config(path, given), given)


def _config(path: str, given: dict[str, Any]) -> Any:
    written, _ = PreTrainedConfig.get_config_dict(path)
    _refuse_absurd(written)
    return AutoConfig.from_pretrained(path, **given)


def _shapes(config: Any, given: dict[str, Any]) -> PreTrainedModel:
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=config.dtype or torch.float32, **given)
    return model.eval()


@contextmanager
def _explained(path: str) -> Iterator[None]:
    try:
        yield
    except ModelError:
        raise
    except Exception as error:
        raise ModelError(f"cannot load a causal language model from {path!r}: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    """In a sentence, with the way out where there is one."""
    said = str(error).strip() or type(error).__name__
    if "trust_remote_code" in said:
        return "it brings code of its own, which runs only with trust_remote_code=True; read that code first"
    if "safetensors" in said and isinstance(error, OSError):
        return f"weights are read from .safetensors files only, for other formats can run code ({said.splitlines()[0]})"
    return said


def _refuse_absurd(config: dict[str, Any]) -> None:
    """Sizes that no model has, before anything of that size is made: a list with an entry for each layer, to begin with."""
    for name, value in config.items():
        if isinstance(value, dict):
            _refuse_absurd(value)
        most = MOST_OF_A_KIND if name.startswith("num_") else LARGEST
        if isinstance(value, int) and abs(value) > most:
            raise ModelError(f"the model's config has {name}={value}, beyond the {most} that mkc accepts")


def _refuse_larger_than_memory(config: Any, given: dict[str, Any]) -> None:
    """By the model's shapes alone, which take no memory."""
    count = sum(p.numel() for p in _shapes(config, given).parameters())
    refuse_beyond_memory(2 * count, torch.device("cpu"), "the model's parameters take")


def refuse_beyond_memory(nbytes: int, device: torch.device, what: str) -> None:
    """Raise ModelError for what can never fit, before any of it is allocated."""
    if device.type == "meta":
        return
    if device.type == "cuda":
        there = torch.cuda.get_device_properties(device).total_memory
    else:
        there = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if nbytes > there:
        raise ModelError(f"{what} {nbytes / 1e9:.0f} GB, and {device} has {there / 1e9:.0f} GB")
