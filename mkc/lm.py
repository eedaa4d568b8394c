"""Causal language models: load one, compile its prompt and decoding into one kernel, generate with one launch an answer."""

from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

import torch
from transformers import PreTrainedModel

from mkc.compiler import Compilation
from mkc.errors import InputError
from mkc.frontend.convert import Raised
from mkc.frontend.decoding import make_state, raise_logits, raise_sections, refuse_unsupported
from mkc.frontend.executable import Executable
from mkc.frontend.loading import load, outline
from mkc.frontend.module import options, target_for
from mkc.ir.program import Words
from mkc.ir.target import Target


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
        self._chosen = chosen, target_for(chosen, model.device)
        self._sections = raise_sections(model, self.state, self.stops, self.chunk)
        self._decoder.build()

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

    @staticmethod
    def planned(path: str, target: Target, **given: Any) -> "CausalLM":
        """The plan of a Hugging Face folder or id for a machine that need not be here. Only its config is read, no weights."""
        return CausalLM(outline(path), target=target, **given)

    @property
    def compilation(self) -> Compilation:
        """Every stage of the kernel that decodes, which reads prompts as well unless it streams its weights."""
        return self._decoder.compilation

    @property
    def launches(self) -> int:
        """How many kernels have been launched so far."""
        reader = self.__dict__.get("_reader")
        return self._decoder.launches + (reader.launches if reader else 0)

    @cached_property
    def _decoder(self) -> Executable:
        """The kernel of both sections; or of decoding alone when it streams: its ring and registers serve nothing else."""
        options, target = self._chosen
        if target.streams and options.policy == "static":
            alone = self._planned(self._sections[1:])
            if alone.compilation.program.streams:
                return alone
        return self._planned(self._sections, streams=False)

    @cached_property
    def _reader(self) -> Executable:
        """The kernel that reads prompts where decoding streams, made when the first prompt comes."""
        return self._planned(self._sections[:1], streams=False)

    @property
    def _streams(self) -> bool:
        return self._decoder.compilation.program.streams is not None

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
        """Tokens after `ids`, at most `max_new_tokens`, ending with an end-of-sequence token where one came.

        One launch; two where decoding streams its weights, for a prompt is read by another kernel then.
        """
        steps = self._begin(ids, max_new_tokens)
        self._decoder(*[self.state.tensors] * len(steps), steps=steps)
        return self._answer(len(ids), max_new_tokens)

    def trace_ids(self, ids: Sequence[int], max_new_tokens: int = 64) -> Words:
        """The same run with time stamps from inside the kernel that decodes: an array of STAMP."""
        steps = self._begin(ids, max_new_tokens)
        return self._decoder.trace(*[self.state.tensors] * len(steps), steps=steps)

    def logits(self, ids: Sequence[int]) -> torch.Tensor:
        """What the decode step makes of a given text: logits [len(ids), vocabulary] of what follows each token.

        For grading. The first call compiles a kernel of the same step that chooses nothing; every token is a launch.
        """
        self._prepare(ids, 1)
        found = [self._scoring(self.state.tensors)[0].clone() for _ in ids]
        return torch.cat(found)[:, -1]

    @cached_property
    def _scoring(self) -> Executable:
        return self._planned([raise_logits(self.model, self.state)])

    def _planned(self, sections: Sequence[Raised], streams: bool = True) -> Executable:
        options, target = self._chosen
        return Executable(sections, replace(target, streams=target.streams and streams), self.model.device, options.policy)

    def _begin(self, ids: Sequence[int], max_new_tokens: int) -> tuple[int, ...]:
        """Prepare, read the prompt where that is a kernel of its own; the steps of the decoder's sections."""
        steps = self._prepare(ids, max_new_tokens)
        if not self._streams:
            return steps
        self._reader(self.state.tensors, steps=steps[:1])
        return steps[1:]

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
