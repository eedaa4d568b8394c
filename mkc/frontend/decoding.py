"""A causal language model as two graphs that share their state: reading the prompt, and one step of decoding.

Both are plain modules around an unmodified Hugging Face model, traced like any other. Positions, lengths and the text
itself are tensors that the kernel reads and writes, so one launch runs a whole answer.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import Cache, PreTrainedModel
from transformers.cache_utils import StaticLayer

from mkc import config
from mkc.errors import ModelError
from mkc.frontend.convert import Raised, convert
from mkc.frontend.loading import refuse_beyond_memory
from mkc.frontend.trace import trace


@dataclass(frozen=True, slots=True)
class State:
    """What lives from step to step. One sequence, room for T tokens, H key-value heads of D.

    The small tensors are views of `words`, so that one copy prepares a run and needs no kernel of torch's.
    """

    words: torch.Tensor  # int64 [4 + T]
    caches: tuple[torch.Tensor, ...]  # keys and values of each layer in turn, [1, H, T or a little more, D]

    @property
    def tensors(self) -> tuple[torch.Tensor, ...]:
        """text [1, T], length [1], position [1], token [1, 1] (all int64), done (bool), then the caches.

        Text is the prompt, then what was generated; position counts the tokens in the cache; token is generated but
        not yet in the cache; done says that it ends the sequence.
        """
        length, position, token, done = (self.words[i : i + 1] for i in range(4))
        text = self.words[4:].unsqueeze(0)
        return (text, length, position, token.unsqueeze(0), done.view(torch.bool)[0], *self.caches)

    def prepare(self, ids: Sequence[int]) -> None:
        """Lay out a prompt, at position 0, not done. The caches keep what they hold: it is never read (MKC_POISON)."""
        words = torch.zeros(len(self.words), dtype=torch.int64)
        words[0] = len(ids)
        words[4 : 4 + len(ids)] = torch.tensor(ids)
        self.words.copy_(words)
        if config.poison():
            for cache in self.caches:
                cache.fill_(torch.nan)

    def text(self, start: int, count: int) -> list[int]:
        """Tokens from `start` on, brought to the host."""
        found: list[int] = self.words[4 + start : 4 + start + count].tolist()
        return found


DONE = 4  # the place of `done` among the tensors


def make_state(model: PreTrainedModel, room: int, chunk: int) -> State:
    """Fresh memory on the model's device, in its dtype, for `room` tokens, and for what fills up the prompt's last chunk."""
    config, device = model.config.get_text_config(), model.device
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    rows = -(-room // chunk) * chunk
    layers = config.num_hidden_layers
    refuse_beyond_memory(2 * layers * heads * rows * width * model.dtype.itemsize, device, f"caches for {room} tokens take")
    caches = [
        torch.zeros(1, heads, rows, width, dtype=model.dtype, device=device)
        for _ in range(2 * layers)
    ]
    return State(torch.zeros(4 + room, dtype=torch.int64, device=device), tuple(caches))


def raise_sections(model: PreTrainedModel, state: State, stops: Sequence[int], chunk: int) -> tuple[Raised, Raised]:
    """The prompt section, `chunk` tokens a step, and the decoding section, one token a step until `done`."""
    ends = torch.tensor(list(stops) or [-1], dtype=torch.int64, device=model.device)
    prompt = trace(_Prompt(model, ends, chunk).eval(), state.tensors, {})
    decode = trace(_Decode(model, ends).eval(), state.tensors, {})
    return convert(prompt, "prompt", loops=True), convert(decode, "decode", loops=True, until=DONE)


def raise_logits(model: PreTrainedModel, state: State) -> Raised:
    """One token of the text a step, as in the decoding section, but giving logits [1, 1, vocabulary] and choosing nothing."""
    ends = torch.tensor([-1], dtype=torch.int64, device=model.device)
    return convert(trace(_Logits(model, ends).eval(), state.tensors, {}), "logits")


class _Layer(StaticLayer):  # type: ignore[misc]
    """A layer's cache in given memory. All layers share the positions to write, which are counted elsewhere."""

    def __init__(self, keys: torch.Tensor, values: torch.Tensor, written: torch.Tensor) -> None:
        super().__init__(max_cache_len=keys.shape[2])
        self.keys, self.values, self.written = keys, values, written
        self.cumulative_length = written[0]
        self.is_initialized = True

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, *_: Any, **__: Any) -> tuple[torch.Tensor, torch.Tensor]:
        self.keys.index_copy_(2, self.written, key_states)
        self.values.index_copy_(2, self.written, value_states)
        return self.keys, self.values


class _Step(nn.Module):
    """What both sections share: the model over some tokens at some positions, and taking up the next token."""

    def __init__(self, model: PreTrainedModel, ends: torch.Tensor) -> None:
        super().__init__()
        self.model = model
        self.ends = nn.Buffer(ends, persistent=False)

    def logits(
        self, ids: torch.Tensor, positions: torch.Tensor, keep: int | torch.Tensor, caches: tuple[torch.Tensor, ...]
    ) -> torch.Tensor:
        """ids [B, S] at positions [S] -> logits [B, 1, V] of what follows row `keep`, or the last row if `keep` is 1."""
        pairs = zip(caches[::2], caches[1::2], strict=True)
        cache = Cache(layers=[_Layer(k, v, positions) for k, v in pairs])
        result = self.model(
            input_ids=ids,
            position_ids=positions.unsqueeze(0),
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=keep,
        )
        return result.logits  # type: ignore[no-any-return]

    def next_token(
        self, ids: torch.Tensor, positions: torch.Tensor, keep: int | torch.Tensor, caches: tuple[torch.Tensor, ...]
    ) -> torch.Tensor:
        """The most likely of these, [B, 1]."""
        return self.logits(ids, positions, keep, caches)[:, -1].argmax(-1, keepdim=True)

    def take(self, found: torch.Tensor, at: torch.Tensor, text: torch.Tensor, token: torch.Tensor, done: torch.Tensor) -> None:
        text.index_copy_(1, at, found)
        token.copy_(found)
        done.copy_((found == self.ends).any())


class _Prompt(_Step):
    """The next `chunk` tokens of the prompt. Rows past its end are computed too, but nothing ever reads them."""

    def __init__(self, model: PreTrainedModel, ends: torch.Tensor, chunk: int) -> None:
        super().__init__(model, ends)
        self.chunk = chunk

    def forward(
        self, text: torch.Tensor, length: torch.Tensor, position: torch.Tensor, token: torch.Tensor,
        done: torch.Tensor, *caches: torch.Tensor,
    ) -> None:  # fmt: skip
        positions = torch.arange(self.chunk, device=text.device) + position
        ids = text.index_select(1, positions.clamp(max=text.shape[1] - 1))
        last = (length - 1 - position).clamp(0, self.chunk - 1)
        found = self.next_token(ids, positions, last, caches)
        self.take(found, length, text, token, done)
        position.copy_(torch.minimum(position + self.chunk, length))


class _Decode(_Step):
    """One token through the model, the next one out."""

    def forward(
        self, text: torch.Tensor, length: torch.Tensor, position: torch.Tensor, token: torch.Tensor,
        done: torch.Tensor, *caches: torch.Tensor,
    ) -> None:  # fmt: skip
        found = self.next_token(token, position, 1, caches)
        following = position + 1
        self.take(found, following, text, token, done)
        position.copy_(following)


class _Logits(_Step):
    """One token of a given text through the model."""

    def forward(
        self, text: torch.Tensor, length: torch.Tensor, position: torch.Tensor, token: torch.Tensor,
        done: torch.Tensor, *caches: torch.Tensor,
    ) -> torch.Tensor:  # fmt: skip
        logits = self.logits(text.index_select(1, position), position, 1, caches)
        position.copy_(position + 1)
        return logits


def refuse_unsupported(model: Any) -> None:
    """Raise ModelError for what cannot be decoded this way."""
    if not isinstance(model, PreTrainedModel) or not model.can_generate():
        raise ModelError(f"{type(model).__name__} is not a Hugging Face model that generates text")
    if model.training:
        raise ModelError(f"{type(model).__name__} is in training mode; call .eval() on it first")
    if model.config.is_encoder_decoder:
        raise ModelError(f"{type(model).__name__} has an encoder; only decoder-only language models are compiled whole")
