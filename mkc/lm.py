"""Causal language models: load one, compile its prompt and decoding into one kernel, generate with one launch an answer."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from typing import Any, overload

import torch
from transformers import PreTrainedModel

from mkc.compiler import Compilation
from mkc.errors import InputError
from mkc.frontend.convert import Raised
from mkc.frontend.decoding import make_state, raise_decoding, raise_logits, raise_prompt, refuse_unsupported
from mkc.frontend.executable import Bound, Executable
from mkc.frontend.loading import load, outline
from mkc.frontend.module import options, target_for
from mkc.ir.graph import Graph
from mkc.ir.program import Words
from mkc.ir.target import Target
from mkc.targets.kept import settled
from mkc.targets.kernel import Kernel

MOST_TOGETHER = 16  # sequences in a step
PROMPT_STEPS = 64  # tokens of a prompt that decoding reads: a step costs its weights once, another kernel a launch, and seconds to make
Ids = Sequence[int]


class CausalLM:
    """A language model in one persistent kernel, greedy.

    `batch` is how many sequences at most are decoded together; `max_length` is the room for prompt and answer of each,
    in tokens; `chunk` is how many prompt tokens one step reads. Where the kernel that decodes does only that, since it
    streams its weights or has a batch, it reads prompts of up to `prompt_steps` tokens too, one a step; longer ones are read
    by a kernel of their own.

    With `page`, caches lie in pages of so many tokens, and sequences share `pool` tokens of them, by default as many as all can
    have: each takes the pages that its prompt and its answer need, when it is asked for.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: Any = None,
        *,
        batch: int = 1,
        max_length: int | None = None,
        chunk: int = 16,
        prompt_steps: int = PROMPT_STEPS,
        page: int | None = None,
        pool: int | None = None,
        **given: Any,
    ) -> None:
        refuse_unsupported(model)
        if not 1 <= batch <= MOST_TOGETHER:
            raise InputError(f"batch={batch} must be from 1 to {MOST_TOGETHER} sequences")
        if prompt_steps < 0:
            raise InputError(f"prompt_steps={prompt_steps} must be a number of tokens, from 0")
        if (page is not None and page < 1) or (pool is not None and (page is None or pool < page)):
            raise InputError(f"page={page} must be a number of tokens, from 1, and pool={pool} at least as many")
        chosen = options(fallback="error", **given)
        text_config = model.config.get_text_config()
        limit = getattr(text_config, "max_position_embeddings", None) or 2048
        self.max_length = max_length or min(limit, 2048)
        if not 1 < self.max_length <= limit:
            raise InputError(f"max_length={max_length} must be from 2 to the model's {limit} positions")
        self.model, self.tokenizer, self.chunk = model, tokenizer, min(chunk, self.max_length)
        self.prompt_steps = prompt_steps
        self.stops = _stops(model)
        self.state = make_state(model, self.max_length, self.chunk, batch, page, pool)
        target = target_for(chosen, model.device)
        self._step = raise_decoding(model, self.state, self.stops)
        self._chosen = chosen, settled([self.graph], target, chosen.policy)
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
        """Every stage of the kernel that decodes. For one sequence it has a section for prompts, unless it streams its weights."""
        return self._decoder.compilation

    @property
    def graph(self) -> Graph:
        """What a step of decoding computes, before any plan."""
        return self._step.graph

    @property
    def target(self) -> Target:
        """What it was planned for."""
        return self._chosen[1]

    def replan(self, target: Target) -> None:
        """Plan and build again, as with other choices. Nothing is traced again, and kernels of before are let go first.

        Raises PlanError, BuildError, TargetError; a later call may succeed.
        """
        self._chosen = self._chosen[0], target
        for made in ("_decoder", "_bound", "_reader", "_scoring"):
            self.__dict__.pop(made, None)
        self._decoder.build()

    @property
    def launches(self) -> int:
        """How many kernels have been launched so far."""
        reader = self.__dict__.get("_reader")
        return self._decoder.launches + (reader.launches if reader else 0)

    @cached_property
    def _decoder(self) -> Executable:
        """The kernel of both sections; or of decoding alone, of a batch or when it streams: its ring serves nothing else."""
        options, target = self._chosen
        if target.streams and options.policy == "static":
            alone = self._planned([self._step])
            if alone.compilation.program.streams:
                return alone
        return self._planned([self._step] if self.batch > 1 else [self._prompt, self._step], streams=False)

    @cached_property
    def _bound(self) -> Bound:
        """The state, for every launch of the decoder."""
        return Bound(self._decoder, [self.state.tensors] * len(self._decoder.raised))

    @cached_property
    def _reader(self) -> Executable:
        """The kernel that reads prompts where they have no section in the decoder, made when the first long prompt comes."""
        return self._planned([self._prompt], streams=False)

    @cached_property
    def _prompt(self) -> Raised:
        return raise_prompt(self.model, self.state, self.stops, self.chunk)

    @property
    def batch(self) -> int:
        """How many sequences at most are decoded together."""
        return self.state.batch

    @property
    def source(self) -> str:
        """One complete page that compiles on its own."""
        return self.compilation.source.complete

    @overload
    def generate(self, prompt: str, max_new_tokens: int = 64) -> str: ...
    @overload
    def generate(self, prompt: list[str] | tuple[str, ...], max_new_tokens: int = 64) -> list[str]: ...
    def generate(self, prompt: str | list[str] | tuple[str, ...], max_new_tokens: int = 64) -> str | list[str]:
        """The continuation of a text, or of each of several, without the end-of-sequence token. Needs a tokenizer."""
        if self.tokenizer is None:
            raise InputError("this CausalLM was made without a tokenizer; use generate_ids, or pass one")
        if isinstance(prompt, str):
            return self.generate([prompt], max_new_tokens)[0]
        told = self.generate_ids([self.tokenizer(text)["input_ids"] for text in prompt], max_new_tokens)
        return [str(self.tokenizer.decode([t for t in ids if t not in self.stops], skip_special_tokens=True)) for ids in told]

    @overload
    def generate_ids(self, ids: Ids, max_new_tokens: int = 64) -> list[int]: ...
    @overload
    def generate_ids(self, ids: Sequence[Ids], max_new_tokens: int = 64) -> list[list[int]]: ...
    def generate_ids(self, ids: Ids | Sequence[Ids], max_new_tokens: int = 64) -> list[int] | list[list[int]]:
        """Tokens after `ids`, at most `max_new_tokens`, ending with an end-of-sequence token where one came.

        Of several prompts, of any lengths, each gets the answer that it would get alone. All of it is one launch; where
        decoding streams its weights or has a batch, and a prompt is longer than `prompt_steps`, one more for each prompt.
        """
        prompts, alone = _several(ids)
        with self._laid(prompts, max_new_tokens):
            steps = self._begin(prompts, max_new_tokens)
            self._decoder.run(self._bound, steps)
            told = self.state.told()
        answers = [self._cut(told[row, len(ids) : len(ids) + max_new_tokens].tolist()) for row, ids in enumerate(prompts)]
        return answers[0] if alone else answers

    def trace_ids(self, ids: Ids | Sequence[Ids], max_new_tokens: int = 64) -> Words:
        """The same run with time stamps from inside the kernel that decodes: an array of STAMP."""
        prompts, _ = _several(ids)
        with self._laid(prompts, max_new_tokens):
            steps = self._begin(prompts, max_new_tokens)
            return self._decoder.trace(*self._bound.leaves, steps=steps)

    @overload
    def logits(self, ids: Ids) -> torch.Tensor: ...
    @overload
    def logits(self, ids: Sequence[Ids]) -> list[torch.Tensor]: ...
    def logits(self, ids: Ids | Sequence[Ids]) -> torch.Tensor | list[torch.Tensor]:
        """What the decode step makes of a given text, or of each of several together: logits [len(ids), vocabulary] of what
        follows each token.

        For grading. The first call compiles a kernel of the same step that chooses nothing; every token is a launch.
        """
        texts, alone = _several(ids)
        with self._laid(texts, 1):
            found = self._scored(texts)
        return found[0] if alone else found

    # ---- from the middle of texts, whose keys and values the caller has laid in `state.caches`

    @property
    def kernel(self) -> Kernel:
        """The kernel that decodes."""
        return self._decoder.kernel

    def stand_at(self, position: int, texts: Sequence[Ids], steps: int) -> None:
        """The state of texts that are read up to `position`, where these ids follow, before `steps` steps."""
        self._refuse_too_many(texts)
        if not 0 < position < self.max_length - steps:
            raise InputError(f"{steps} steps from position {position} do not fit max_length={self.max_length}")
        self.state.stand_at(position, texts, steps)

    def decode_on(self, steps: int) -> None:
        """Steps of decoding from where the state stands. One launch."""
        self._decoder.run(self._bound, self._alone(steps))

    def trace_on(self, steps: int) -> Words:
        """The same with time stamps from inside the kernel: an array of STAMP."""
        return self._decoder.trace(*self._bound.leaves, steps=self._alone(steps))

    def _alone(self, steps: int) -> tuple[int, ...]:
        """Steps of decoding, and none of what comes before."""
        return (*[0] * (len(self._decoder.raised) - 1), steps)

    def logits_at(self, position: int, texts: Sequence[Ids]) -> list[torch.Tensor]:
        """What the decode step makes of tokens from `position` on: logits [len(ids), vocabulary] of each text."""
        self.stand_at(position, texts, max(map(len, texts)))
        return self._scored(texts)

    def _scored(self, texts: Sequence[Ids]) -> list[torch.Tensor]:
        """From where the state stands. A text that is over goes on with zeros, which nobody looks at."""
        steps = [self._scoring(self.state.tensors)[0][:, -1].clone() for _ in range(max(map(len, texts)))]
        return [torch.stack([step[row] for step in steps[: len(ids)]]) for row, ids in enumerate(texts)]

    @cached_property
    def _scoring(self) -> Executable:
        return self._planned([self._logits])

    @cached_property
    def _logits(self) -> Raised:
        return raise_logits(self.model, self.state)

    def _planned(self, sections: Sequence[Raised], streams: bool = True) -> Executable:
        options, target = self._chosen
        return Executable(sections, replace(target, streams=target.streams and streams), self.model.device, options.policy)

    def _begin(self, prompts: Sequence[Ids], max_new_tokens: int) -> tuple[int, ...]:
        """Read long prompts where that is a kernel of its own; the steps of the decoder's sections."""
        chunks = [-(-len(ids) // self.chunk) for ids in prompts]
        if len(self._decoder.raised) > 1:
            return (*chunks, max_new_tokens - 1)
        longest = max(map(len, prompts))
        if longest <= self.prompt_steps:
            return (longest - 1 + max_new_tokens,)
        for row, count in enumerate(chunks):
            self._reader(self.state.row(row), steps=(count,))
        return (max_new_tokens - 1,)

    @contextmanager
    def _laid(self, prompts: Sequence[Ids], max_new_tokens: int) -> Iterator[None]:
        """With the prompts in the state, and pages for them and for their answers until the end."""
        self._refuse_too_many(prompts)
        vocabulary = self.model.config.get_text_config().vocab_size
        for ids in prompts:
            if not ids or not all(0 <= i < vocabulary for i in ids):
                raise InputError(f"a prompt is one or more token ids below {vocabulary}")
            if max_new_tokens < 1 or len(ids) + max_new_tokens > self.max_length:
                raise InputError(
                    f"{len(ids)} prompt tokens and max_new_tokens={max_new_tokens} do not fit max_length={self.max_length}"
                )
        self.state.prepare(prompts, max_new_tokens)
        try:
            yield
        finally:
            self.state.let_go()

    def _refuse_too_many(self, texts: Sequence[Ids]) -> None:
        if not 1 <= len(texts) <= self.batch:
            raise InputError(f"{len(texts)} prompts for a CausalLM with batch={self.batch}, which takes from 1 to {self.batch}")

    def _cut(self, found: list[int]) -> list[int]:
        """Tokens up to the first that ends the sequence."""
        ends = [i for i, token in enumerate(found) if token in self.stops]
        return found[: ends[0] + 1] if ends else found


def _several(ids: Ids | Sequence[Ids]) -> tuple[Sequence[Ids], bool]:
    """Prompts, and whether it was one that came by itself."""
    alone = not ids or not isinstance(ids[0], Sequence)
    return ([ids] if alone else ids), alone  # type: ignore[list-item, return-value]


def _stops(model: PreTrainedModel) -> tuple[int, ...]:
    """The tokens that end a sequence."""
    given = getattr(model.generation_config, "eos_token_id", None)
    if given is None:
        given = model.config.get_text_config().eos_token_id
    return tuple(given) if isinstance(given, list | tuple) else () if given is None else (given,)
