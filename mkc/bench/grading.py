"""CausalLM, a context -> Grade. Its tokens from there on, and the logits behind them, beside eager's and float64's."""

from collections.abc import Callable, Sequence

import torch
from transformers import DynamicCache

from mkc.bench.baselines import FIRST
from mkc.lm import CausalLM
from mkc.numerics import Grade, grade, widened

Texts = Sequence[Sequence[int]]
Answers = Callable[[CausalLM, int, Texts], tuple[torch.Tensor, torch.Tensor]]


def answers(lm: CausalLM, context: int, texts: Texts) -> tuple[torch.Tensor, torch.Tensor]:
    """What the model itself makes of texts that go on from this context: eager's logits and float64's."""
    eager = _all_continued(lm, context, texts, lm.model.dtype)
    with widened(lm.model):
        return eager, _all_continued(lm, context, texts, torch.float64)


def remembered(asked: Answers = answers) -> Answers:
    """The same, asked once for the same texts, while the caches before the context stay as they are."""
    known: dict[object, tuple[torch.Tensor, torch.Tensor]] = {}

    def ask(lm: CausalLM, context: int, texts: Texts) -> tuple[torch.Tensor, torch.Tensor]:
        key = context, tuple(map(tuple, texts))
        if key not in known:
            known[key] = asked(lm, context, texts)
        return known[key]

    return ask


def grade_at(lm: CausalLM, context: int, steps: int, ask: Answers = answers) -> Grade:
    """Our decoding from the middle of texts, a whole batch, whose keys and values stand in the state."""
    lm.stand_at(context, [[FIRST]] * lm.batch, steps)
    lm.decode_on(steps)
    told = lm.state.told()[:, context + 1 : context + 1 + steps].tolist()
    texts = [[FIRST, *tokens[:-1]] for tokens in told]
    ours = torch.cat(lm.logits_at(context, texts))
    eager, exact = ask(lm, context, texts)
    return grade(ours, eager, exact, torch.tensor(told, device=exact.device).flatten())


def _all_continued(lm: CausalLM, context: int, texts: Texts, dtype: torch.dtype) -> torch.Tensor:
    return torch.cat([continued(lm, context, text, dtype, row) for row, text in enumerate(texts)])


def continued(lm: CausalLM, context: int, text: Sequence[int], dtype: torch.dtype, row: int = 0) -> torch.Tensor:
    """Logits [len(text), vocabulary] of the model itself for one sequence of the batch, in one pass."""
    cache = DynamicCache()
    past = [held[row : row + 1, :, :context].to(dtype) for held in lm.state.caches]
    for layer, (keys, values) in enumerate(zip(past[::2], past[1::2], strict=True)):
        cache.update(keys, values, layer)
    ids = torch.tensor([list(text)], device=lm.model.device)
    logits: torch.Tensor = lm.model(input_ids=ids, past_key_values=cache, use_cache=True).logits[0]
    return logits
