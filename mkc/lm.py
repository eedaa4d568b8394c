"""Causal language models: load one, compile its prompt and decoding into one kernel, generate with one launch an answer."""

from collections.abc import Sequence
from typing import Any

import torch
from transformers import PreTrainedModel

from mkc.compiler import Compilation
from mkc.errors import InputError
from mkc.frontend.decoding import make_state, raise_sections, refuse_unsupported
from mkc.frontend.executable import Executable
from mkc.frontend.loading import load
from mkc.frontend.module import options, target_for
from mkc.ir.program import Words


class CausalLM:
    """A language model in one persistent kernel, one sequence at a time, greedy.

    `max_length` is the room for prompt and answer together, in tokens; `chunk` is how many prompt tokens one step reads.
    """

    def __init__(
        self, model: PreTrainedModel, tokenizer: Any = None, *, max_length: int | None = None, chunk: int = 16, **given: Any
    ) -> None:
        refuse_unsupported(model)
        chosen = options(fallback="error", **given)
        text_config = model.config.get_text_config()
        limit = getattr(text_config, "max_position_embeddings", None) or 2048
        self.max_length = max_length or min(limit, 2048)
        if not 1 < self.max_length <= limit:
            raise InputError(f"max_length={max_length} must be from 2 to the model's {limit} positions")
        self.model, self.tokenizer, self.chunk = model, tokenizer, min(chunk, self.max_length)
        self.stops = _stops(model)
        self.state = make_state(model, self.max_length, self.chunk)
        target = target_for(chosen, model.device)
        sections = raise_sections(model, self.state, self.stops, self.chunk)
        self._executable = Executable(sections, target, model.device, chosen.policy)
        self._executable.build()

    @staticmethod
    def from_pretrained(
        path: str,
        *,
        dtype: torch.dtype | str = "auto",
        device: str | torch.device = "cpu",
        trust_remote_code: bool = False,
        **given: Any,
    ) -> "CausalLM":
        """A Hugging Face folder or id, unmodified, with safetensors weights. Raises ModelError when it cannot be loaded.

        Code that comes with a model runs only with `trust_remote_code`. See docs/security.md.
        """
        model, tokenizer = load(path, dtype, trust_remote_code)
        return CausalLM(model.to(device).eval(), tokenizer, **given)

    @property
    def compilation(self) -> Compilation:
        """Every stage of both sections and of the kernel."""
        return self._executable.compilation

    @property
    def launches(self) -> int:
        """How many kernels have been launched so far."""
        return self._executable.launches

    @property
    def source(self) -> str:
        """One complete page that compiles on its own."""
        return self.compilation.source.complete

    def generate(self, prompt: str, max_new_tokens: int = 64) -> str:
        """The continuation of a text, without the end-of-sequence token. Needs a tokenizer."""
        if self.tokenizer is None:
            raise InputError("this CausalLM was made without a tokenizer; use generate_ids, or pass one")
        found = self.generate_ids(self.tokenizer(prompt)["input_ids"], max_new_tokens)
        return str(self.tokenizer.decode([t for t in found if t not in self.stops], skip_special_tokens=True))

    def generate_ids(self, ids: Sequence[int], max_new_tokens: int = 64) -> list[int]:
        """Tokens after `ids`, at most `max_new_tokens`, ending with an end-of-sequence token where one came. One launch."""
        steps = self._prepare(ids, max_new_tokens)
        self._executable(self.state.tensors, self.state.tensors, steps=steps)
        return self._answer(len(ids), max_new_tokens)

    def trace_ids(self, ids: Sequence[int], max_new_tokens: int = 64) -> Words:
        """The same run with time stamps: an array of STAMP."""
        steps = self._prepare(ids, max_new_tokens)
        return self._executable.trace(self.state.tensors, self.state.tensors, steps=steps)

    def _prepare(self, ids: Sequence[int], max_new_tokens: int) -> tuple[int, int]:
        """Lay the prompt in the state; how many steps each section takes."""
        vocabulary = self.model.config.get_text_config().vocab_size
        if not ids or not all(0 <= i < vocabulary for i in ids):
            raise InputError(f"a prompt is one or more token ids below {vocabulary}")
        if max_new_tokens < 1 or len(ids) + max_new_tokens > self.max_length:
            raise InputError(
                f"{len(ids)} prompt tokens and max_new_tokens={max_new_tokens} do not fit max_length={self.max_length}"
            )
        self.state.prepare(ids)
        return -(-len(ids) // self.chunk), max_new_tokens - 1

    def _answer(self, start: int, count: int) -> list[int]:
        found = self.state.text(start, count)
        ends = [i for i, token in enumerate(found) if token in self.stops]
        return found[: ends[0] + 1] if ends else found


def _stops(model: PreTrainedModel) -> tuple[int, ...]:
    """The tokens that end a sequence."""
    given = getattr(model.generation_config, "eos_token_id", None)
    if given is None:
        given = model.config.get_text_config().eos_token_id
    return tuple(given) if isinstance(given, list | tuple) else () if given is None else (given,)
