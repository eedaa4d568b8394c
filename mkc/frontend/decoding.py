"""A causal language model as two graphs that share their state: reading the prompt, and one step of decoding.

Both are plain modules around an unmodified Hugging Face model, traced like any other. Positions, lengths and the text
itself are tensors that the kernel reads and writes, so one launch runs a whole answer. A step of decoding takes its next
token from the text as long as the prompt goes on, so it can read prompts as well, a token at a time.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree
from transformers import Cache, PreTrainedModel
from transformers.cache_utils import StaticLayer
from transformers.masking_utils import create_masks_for_generate

from mkc import config
from mkc.errors import ModelError
from mkc.frontend.convert import Raised, convert
from mkc.frontend.loading import refuse_beyond_memory
from mkc.frontend.pages import Pages
from mkc.frontend.trace import trace
from mkc.frontend.traces import once

NOBODY = -1  # the token of a row without a sequence
FREE = -2  # in the place of a token that is yet to be chosen


@dataclass(frozen=True, slots=True)
class State:
    """What lives from step to step. B sequences, room for T tokens each, H key-value heads of D.

    The small tensors are views of `words`, so that one copy prepares a run and needs no kernel of torch's.
    """

    words: torch.Tensor  # int64 [B, length, position, token and flag each, a flag for all, what pages add, [B, T] of text]
    caches: tuple[torch.Tensor, ...]  # keys and values of each layer in turn, [B, H, T or a little more, D], or pages [P, H, page, D]
    pages: Pages | None = None  # which sequence has which; a limit for each is added, and [B, N] of a table

    @property
    def batch(self) -> int:
        return self.pages.batch if self.pages else self.caches[0].shape[0]

    @property
    def text(self) -> torch.Tensor:
        """[B, T]: prompts, then what was generated."""
        return self._behind_flags[self._added :].view(self.batch, -1)

    @property
    def limit(self) -> torch.Tensor:
        """[B]: the tokens that a sequence has room for. It stays where it is, with the last of them. Where there are pages."""
        return self._behind_flags[: self.batch]

    @property
    def table(self) -> torch.Tensor:
        """[B, N]: the pages of each sequence, in the order of its tokens; nobody's where it has none. Where there are pages."""
        return self._behind_flags[self.batch : self._added].view(self.batch, -1)

    @property
    def _behind_flags(self) -> torch.Tensor:
        return self.words[4 * self.batch + 1 :]

    @property
    def _added(self) -> int:
        """Words for pages."""
        return _words_of(self.pages) if self.pages else 0

    @property
    def tensors(self) -> tuple[torch.Tensor, ...]:
        """text [B, T], length [B], position [B], token [B, 1] (all int64), done (bool), with pages limit and table, then the caches.

        Position counts the tokens in the cache; token stands there, and is not yet in the cache. From `length` on tokens are
        chosen, and enter the text a step later, with their keys and values. Done says that one ends the sequence, or all.
        """
        length, position, token, _ = self.words[: 4 * self.batch].view(4, -1)
        done = self.words[4 * self.batch :].view(torch.bool)[0]
        paged = (self.limit, self.table) if self.pages else ()
        return (self.text, length, position, token.unsqueeze(1), done, *paged, *self.caches)

    def row(self, row: int) -> tuple[torch.Tensor, ...]:
        """The tensors of one sequence alone, which has a flag of its own. Pages are all sequences'."""
        if self.batch == 1:
            return self.tensors
        tensors = self.tensors[: -len(self.caches)] if self.pages else self.tensors
        text, length, position, token, _, *others = (t[row : row + 1] if t.dim() else t for t in tensors)
        done = self.words[3 * self.batch + row :].view(torch.bool)[0]
        return (text, length, position, token, done, *others, *(self.caches if self.pages else ()))

    def prepare(self, prompts: Sequence[Sequence[int]], more: int = 1) -> None:
        """Lay out prompts, at position 0, none done, with room for so many tokens more. The caches keep what they hold: it is
        never read (MKC_POISON). Raises InputError when there are too few pages."""
        self._lay([0] * len(prompts), prompts, [len(ids) for ids in prompts], [len(ids) + more for ids in prompts])
        if config.poison():
            for cache in self.caches:
                cache.fill_(torch.nan)

    def stand_at(self, position: int, texts: Sequence[Sequence[int]], steps: int = 0) -> None:
        """Every sequence is read up to `position`, where its text follows: of that only the first token is taken as it is.
        There is room for so many steps. Raises InputError when there are too few pages."""
        self._lay([position] * len(texts), texts, [position] * len(texts), [position + steps + 1] * len(texts))

    def _lay(
        self, starts: Sequence[int], texts: Sequence[Sequence[int]], lengths: Sequence[int], rooms: Sequence[int]
    ) -> None:
        """Texts from their starts on, which are also their positions."""
        words = torch.zeros(len(self.words), dtype=torch.int64)
        laid = State(words, self.caches, self.pages)
        length, position, token = words[: 3 * self.batch].view(3, -1)
        token.fill_(NOBODY)
        for row, (start, ids) in enumerate(zip(starts, texts, strict=True)):
            laid.text[row, start : start + len(ids)] = torch.tensor(ids)
            length[row], position[row], token[row] = lengths[row], start, ids[0]
        self.let_go()
        if self.pages:
            laid.limit.fill_(1)
            for row, pages in enumerate(self.pages.share_out(rooms)):
                laid.limit[row], laid.table[row, : len(pages)] = rooms[row], torch.tensor(pages)
        self.words.copy_(words)

    def let_go(self) -> None:
        """Give back what pages the texts have."""
        if self.pages:
            self.pages.take_back()

    def told(self) -> torch.Tensor:
        """[B, T]: the text of every sequence, the latest token too, brought to the host in one copy."""
        text, _, position, token, *_ = State(self.words.cpu(), self.caches, self.pages).tensors
        return text.scatter(1, position.unsqueeze(1), token)


def _words_of(pages: Pages) -> int:
    """Of a limit for each sequence, and of a table."""
    return pages.batch * (1 + pages.most)


DONE = 4  # the place of `done` among the tensors


def make_state(
    model: PreTrainedModel, room: int, chunk: int, batch: int = 1, page: int | None = None, pool: int | None = None
) -> State:
    """Fresh memory on the model's device, in its dtype, for `room` tokens a sequence, and for what fills up a prompt's last chunk.

    With `page`, sequences share pages of so many tokens, enough for `pool` tokens of all together, or for all there can be.
    """
    config, device = model.config.get_text_config(), model.device
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    rows = -(-room // chunk) * chunk
    layers = config.num_hidden_layers
    pages = _pages(page, pool, batch, rows) if page else None
    shape = (pages.count + 1, heads, pages.size, width) if pages else (batch, heads, rows, width)
    nbytes = 2 * layers * prod(shape) * model.dtype.itemsize
    refuse_beyond_memory(nbytes, device, f"caches for {pages.count * pages.size if pages else batch * room} tokens take")
    caches = [torch.zeros(shape, dtype=model.dtype, device=device) for _ in range(2 * layers)]
    count = batch * (4 + room) + 1 + (_words_of(pages) if pages else 0)
    return State(torch.zeros(count, dtype=torch.int64, device=device), tuple(caches), pages)


def _pages(size: int, pool: int | None, batch: int, rows: int) -> Pages:
    """For so many tokens together; no more than `batch` sequences of so many rows can use."""
    most = -(-rows // size)
    count = batch * most if pool is None else min(-(-pool // size), batch * most)
    return Pages(size, count, batch, most)


def raise_prompt(model: PreTrainedModel, state: State, stops: Sequence[int], chunk: int) -> Raised:
    """The section that reads the prompt of one sequence, `chunk` tokens a step."""
    step = _Prompt(model, _ends(model, stops), chunk, state.pages is not None)
    return _raised(step, state.row(0), "prompt", loops=True)


def raise_decoding(model: PreTrainedModel, state: State, stops: Sequence[int]) -> Raised:
    """The section that decodes, one token of all sequences a step until `done`."""
    ends, paged = _ends(model, stops), state.pages is not None
    step = _DecodeTogether(model, ends, paged) if state.batch > 1 else _Decode(model, ends, paged)
    return _raised(step, state.tensors, "decode", loops=True, until=DONE)


def raise_logits(model: PreTrainedModel, state: State) -> Raised:
    """One token of the text a step, as in the decoding section, but giving logits [B, 1, vocabulary] and choosing nothing."""
    return _raised(_Logits(model, _ends(model, ()), state.pages is not None), state.tensors, "logits")


def _raised(step: nn.Module, tensors: tuple[torch.Tensor, ...], name: str, **loop: Any) -> Raised:
    return once(step.eval(), tensors, lambda: convert(trace(step, tensors, {}), name, **loop))


def _ends(model: PreTrainedModel, stops: Sequence[int]) -> torch.Tensor:
    return torch.tensor(sorted({*stops, NOBODY}), dtype=torch.int64, device=model.device)


class _Layer(StaticLayer):  # type: ignore[misc]
    """A layer's cache in given memory. All layers share the positions to write, which are counted elsewhere."""

    def __init__(self, keys: torch.Tensor, values: torch.Tensor, written: torch.Tensor) -> None:
        super().__init__(max_cache_len=keys.shape[2])
        self.keys, self.values, self.written = keys, values, written
        self.cumulative_length: Any = written[0]
        self.is_initialized = True

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, *_: Any, **__: Any) -> tuple[torch.Tensor, torch.Tensor]:
        self.keys.index_copy_(2, self.written, key_states)
        self.values.index_copy_(2, self.written, value_states)
        return self.keys, self.values


class _LayerTogether(_Layer):
    """Of sequences that are each at a position of their own, [B]."""

    def __init__(self, keys: torch.Tensor, values: torch.Tensor, written: torch.Tensor) -> None:
        super().__init__(keys, values, written)
        self.cumulative_length = _Places(written)

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, *_: Any, **__: Any) -> tuple[torch.Tensor, torch.Tensor]:
        rows = self.written.view(-1, 1, 1, 1).expand(key_states.shape)
        self.keys.scatter_(2, rows, key_states)
        self.values.scatter_(2, rows, value_states)
        return self.keys, self.values


class _LayerInPages(StaticLayer):  # type: ignore[misc]
    """A layer's cache in pages [P, H, page, D]: those that the table [B, N] names, B sequences' or one's. All layers share the
    places to write."""

    def __init__(self, keys: torch.Tensor, values: torch.Tensor, table: torch.Tensor, places: "_Written") -> None:
        super().__init__(max_cache_len=table.shape[1] * keys.shape[2])
        self.keys, self.values, self.table, self.places = keys, values, table, places
        self.cumulative_length: Any = _Places(places.positions) if len(table) > 1 else places.positions[0]
        self.is_initialized = True

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, *_: Any, **__: Any) -> tuple[torch.Tensor, torch.Tensor]:
        return self._updated(self.keys, key_states), self._updated(self.values, value_states)

    def _updated(self, pool: torch.Tensor, states: torch.Tensor) -> torch.Tensor:
        """Takes in rows [B, H, S, D], and gives all of each sequence's [B, H, N * page, D]."""
        pool[self.places.pages, :, self.places.rows] = states.transpose(1, 2).flatten(0, 1)
        return pool[self.table].transpose(1, 2).flatten(2, 3)


class _Written:
    """Where rows at these positions [N] are written: the page of each, and the row of that. One sequence's, or one of each."""

    def __init__(self, table: torch.Tensor, positions: torch.Tensor, page: int) -> None:
        numbers = (positions // page).unsqueeze(1)
        self.positions, self.rows = positions, positions % page
        self.pages = table.expand(len(positions), -1).gather(1, numbers).squeeze(1)


@dataclass(frozen=True, slots=True)
class _Places:
    """What a range of B must be moved by to give B positions. Masks are made by moving the range of a sequence's tokens."""

    positions: torch.Tensor

    def __radd__(self, _: torch.Tensor) -> torch.Tensor:
        return self.positions


class _Step(nn.Module):
    """What both sections share: the model over some tokens at some positions, and taking up the next token."""

    def __init__(self, model: PreTrainedModel, ends: torch.Tensor, paged: bool = False) -> None:
        super().__init__()
        self.model, self.paged = model, paged
        self.ends = nn.Buffer(ends, persistent=False)

    def logits(
        self, ids: torch.Tensor, positions: torch.Tensor, keep: int | torch.Tensor, caches: tuple[torch.Tensor, ...]
    ) -> torch.Tensor:
        """ids [1, S] at positions [S], or [B, 1] at a position each -> logits [B, 1, V] of what follows row `keep`, or the
        last row if `keep` is 1."""
        together = len(ids) > 1
        cache = Cache(layers=self._layers(positions, caches, together))
        result = self.model(
            input_ids=ids,
            attention_mask=self._masks(cache, len(ids)) if together else None,
            position_ids=positions.unsqueeze(1 if together else 0),
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=keep,
        )
        return result.logits  # type: ignore[no-any-return]

    def _layers(self, positions: torch.Tensor, caches: tuple[torch.Tensor, ...], together: bool) -> list[StaticLayer]:
        if not self.paged:
            layer = _LayerTogether if together else _Layer
            return [layer(k, v, positions) for k, v in zip(caches[::2], caches[1::2], strict=True)]
        _, table, *pools = caches
        places = _Written(table, positions, pools[0].shape[2])
        return [_LayerInPages(k, v, table, places) for k, v in zip(pools[::2], pools[1::2], strict=True)]

    def _within(self, following: torch.Tensor, caches: tuple[torch.Tensor, ...]) -> torch.Tensor:
        """Positions [B], none beyond the last that its sequence has room for."""
        return torch.minimum(following, caches[0] - 1) if self.paged else following

    def _masks(self, cache: Cache, batch: int) -> Any:
        """What each sequence sees [B, 1, 1, T], for each kind of layer: what the model has for B tokens of one sequence."""
        tokens = self.model.get_input_embeddings().weight[:1].expand(1, batch, -1)  # of which only the shape counts
        masks = create_masks_for_generate(self.model.config, tokens, None, cache)
        return pytree.tree_map(lambda mask: mask.transpose(0, 2), masks)

    def next_token(
        self, ids: torch.Tensor, positions: torch.Tensor, keep: int | torch.Tensor, caches: tuple[torch.Tensor, ...]
    ) -> torch.Tensor:
        """The most likely of these, [B, 1]."""
        return self.logits(ids, positions, keep, caches)[:, -1].argmax(-1, keepdim=True)

    def take(
        self, found: torch.Tensor, ending: torch.Tensor, token: torch.Tensor, done: torch.Tensor, going: int | torch.Tensor = 1
    ) -> None:
        """Take up tokens [B, 1], with which all is done where as many as are `going` are one of the ends and may end their
        sequence, [B, ends]."""
        token.copy_(found)
        done.copy_(ending.sum() == going)  # a token is one of the ends at most


class _Prompt(_Step):
    """The next `chunk` tokens of the prompt. Rows past its end are computed too, but nothing ever reads them."""

    def __init__(self, model: PreTrainedModel, ends: torch.Tensor, chunk: int, paged: bool = False) -> None:
        super().__init__(model, ends, paged)
        self.chunk = chunk

    def forward(
        self, text: torch.Tensor, length: torch.Tensor, position: torch.Tensor, token: torch.Tensor,
        done: torch.Tensor, *caches: torch.Tensor,
    ) -> None:  # fmt: skip
        positions = torch.arange(self.chunk, device=text.device) + position
        ids = text.index_select(1, positions.clamp(max=text.shape[1] - 1))
        last = (length - 1 - position).clamp(0, self.chunk - 1)
        found = self.next_token(ids, positions, last, caches)
        self.take(found, found == self.ends, token, done)
        position.copy_(torch.minimum(position + self.chunk, length))


class _Decode(_Step):
    """One token through the model, the next one out: the prompt's while that goes on, then the most likely.

    What does not need the logits stands before the model: between two steps every task counts.
    """

    def forward(
        self, text: torch.Tensor, length: torch.Tensor, position: torch.Tensor, token: torch.Tensor,
        done: torch.Tensor, *caches: torch.Tensor,
    ) -> None:  # fmt: skip
        text.index_copy_(1, position, token)
        coming = text[:, 1:].index_select(1, position)
        given = torch.where(position + 1 < length, coming, FREE)
        likely = self.next_token(token, position, 1, caches)
        found = torch.where(given == FREE, likely, given)
        self.take(found, (found == self.ends) & (given == FREE), token, done)
        position.copy_(position + 1)


class _DecodeTogether(_Step):
    """One token of each sequence through the model, the next ones out. A sequence that has ended stays where it is."""

    def forward(
        self, text: torch.Tensor, length: torch.Tensor, position: torch.Tensor, token: torch.Tensor,
        done: torch.Tensor, *caches: torch.Tensor,
    ) -> None:  # fmt: skip
        text.scatter_(1, position.unsqueeze(1), token)
        ended = (token == self.ends).any(-1) & (position >= length)
        following = self._within(position + torch.logical_not(ended), caches)
        coming = text.gather(1, following.unsqueeze(1))
        known = (following < length) | (following == position)
        given = torch.where(known.unsqueeze(1), coming, FREE)
        may_end: torch.Tensor = following >= length
        going: int | torch.Tensor = len(token)
        if self.paged:  # those that have room for more
            more = following + 1 < caches[0]
            may_end, going = may_end & more, more.sum()
        likely = self.next_token(token, position, 1, caches)
        found = torch.where(given == FREE, likely, given)
        self.take(found, (found == self.ends) & may_end.unsqueeze(1), token, done, going)
        position.copy_(following)


class _Logits(_Step):
    """One token of each given text through the model."""

    def forward(
        self, text: torch.Tensor, length: torch.Tensor, position: torch.Tensor, token: torch.Tensor,
        done: torch.Tensor, *caches: torch.Tensor,
    ) -> torch.Tensor:  # fmt: skip
        logits = self.logits(text.gather(1, position.unsqueeze(1)), position, 1, caches)
        position.copy_(self._within(position + 1, caches))
        return logits


def refuse_unsupported(model: Any) -> None:
    """Raise ModelError for what cannot be decoded this way."""
    if not isinstance(model, PreTrainedModel) or not model.can_generate():
        raise ModelError(f"{type(model).__name__} is not a Hugging Face model that generates text")
    if model.training:
        raise ModelError(f"{type(model).__name__} is in training mode; call .eval() on it first")
    if model.config.is_encoder_decoder:
        raise ModelError(f"{type(model).__name__} has an encoder; only decoder-only language models are compiled whole")
