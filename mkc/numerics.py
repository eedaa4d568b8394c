"""Results, eager's and float64's -> how close is close. Eager PyTorch's own error in the same dtype is the measure."""

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

FACTOR = 2.0  # how many times as far from float64 as eager PyTorch a result may be


def allowed(eager: torch.Tensor, exact: torch.Tensor, factor: float = FACTOR) -> torch.Tensor:
    """How far from `exact` (float64) each element may be: factor max|eager - exact| + 2 eps |exact|, eps of eager's dtype."""
    own = largest((eager.double() - exact).abs())
    return factor * own + 2 * torch.finfo(eager.dtype).eps * exact.abs()


def largest(values: torch.Tensor) -> float:
    """The greatest element, 0 of nothing."""
    return values.max().item() if values.numel() else 0.0


@contextmanager
def in_float64(model: torch.nn.Module) -> Iterator[torch.nn.Module]:
    """A copy of a model that computes in float64 throughout, also where its code asks for float32 by name."""
    with _Wide(), torch.no_grad():
        yield copy.deepcopy(model).double()


class _Wide(TorchFunctionMode):
    """Who asks for float32 gets float64: models keep norms and angles in float32, whatever their dtype."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        wide = pytree.tree_map(lambda x: torch.float64 if x is torch.float32 else x, (args, kwargs or {}))
        return (torch.Tensor.double if func is torch.Tensor.float else func)(*wide[0], **wide[1])


@contextmanager
def widened(model: torch.nn.Module) -> Iterator[torch.nn.Module]:
    """The model itself, computing in float64: weights are widened as they are used, so no copy of them need fit.

    For decoders whose weights are met in linear layers, norms and embeddings. Caches must hold float64.
    """
    with _WideWeights(), torch.no_grad():
        yield model


class _WideWeights(_Wide):
    """Linear layers and norms in float64, embeddings as float64; what follows is promoted."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.embedding:
            return func(*args, **(kwargs or {})).double()
        if func in (F.linear, F.layer_norm, F.rms_norm):
            args, kwargs = pytree.tree_map(_wide, (args, kwargs or {}))
        return super().__torch_function__(func, types, args, kwargs)


def _wide(value: Any) -> Any:
    return value.double() if isinstance(value, torch.Tensor) and value.is_floating_point() else value


@dataclass(frozen=True, slots=True)
class Grade:
    """Logits of some steps beside float64's, ours and eager's in the same dtype.

    A token is *right* where it is float64's best or as good to within the bound, `factor` times eager's largest error.
    Steps where float64's two best are that close are near ties: either is right there, and they are counted apart.
    """

    steps: int
    error: float  # the largest |ours - exact|
    eager_error: float
    within: bool  # every logit is as near to float64 as is allowed
    kl: float  # KL(exact || ours), mean over steps, nats
    eager_kl: float
    clear: int  # steps that are no near ties
    agree: int  # clear steps where the token is float64's best
    ties_agree: int  # near ties where it is
    eager_ties_agree: int  # and where eager's is
    wrong: int  # steps whose token is worse than the best by more than the bound

    @property
    def ties(self) -> int:
        return self.steps - self.clear

    @property
    def factor(self) -> float:
        """Our largest error over eager's."""
        return self.error / self.eager_error if self.eager_error else float(self.error > 0)

    @property
    def passed(self) -> bool:
        """Logits as near as is allowed, and not one wrong token."""
        return self.within and not self.wrong

    def __str__(self) -> str:
        ties = f", {self.ties_agree} of {self.ties} near ties (eager {self.eager_ties_agree})" if self.ties else ""
        return (
            f"{'passed' if self.passed else 'FAILED'}: logits off by {self.error:.2g} at most, {self.factor:.2f} of eager; "
            f"KL {self.kl:.1e} nats (eager {self.eager_kl:.1e}); float64's token in {self.agree} of {self.clear} steps{ties}"
            f"{f'; {self.wrong} tokens wrong' if self.wrong else ''}"
        )


def grade(
    ours: torch.Tensor, eager: torch.Tensor, exact: torch.Tensor, tokens: torch.Tensor | None = None, factor: float = FACTOR
) -> Grade:
    """Logits [steps, vocabulary] of the same prefixes; exact in float64. `tokens` [steps] are what was chosen, if not the best of ours."""
    chosen = ours.argmax(-1) if tokens is None else tokens
    best, first = exact.max(-1)
    error, own = ((x.double() - exact).abs() for x in (ours, eager))
    bound = factor * largest(own)
    second = exact.topk(2, -1).values[:, 1]
    clear = best - second > bound
    hit, eager_hit = chosen == first, eager.argmax(-1) == first
    regret = best - exact.gather(-1, chosen.unsqueeze(-1)).squeeze(-1)
    return Grade(
        len(exact), largest(error), largest(own), bool((error <= allowed(eager, exact, factor)).all()),
        divergence(exact, ours), divergence(exact, eager),
        int(clear.sum()), int((hit & clear).sum()), int((hit & ~clear).sum()), int((eager_hit & ~clear).sum()),
        int((regret > bound).sum()),
    )  # fmt: skip


def divergence(exact: torch.Tensor, logits: torch.Tensor) -> float:
    """KL(softmax(exact) || softmax(logits)), mean over rows, in nats."""
    p, q = (x.double().log_softmax(-1) for x in (exact, logits))
    return ((p - q) * p.exp()).sum(-1).mean().item()


def grade_answer(lm: Any, ids: Sequence[int], count: int, factor: float = FACTOR) -> Grade:
    """The greedy answer of an `mkc.CausalLM`, `count` tokens, graded step by step.

    All three read the same text, the prompt and our answer, so a near tie does not decide what is compared after it. The
    tokens are those of the launch that generated; the logits those of the same step without the choice.
    """
    told = lm.generate_ids(ids, count)
    text = [*ids, *told]
    steps = slice(len(ids) - 1, len(text) - 1)
    ours = lm.logits(text[:-1])[steps]
    eager = teacher_forced(lm.model, text)[steps]
    with in_float64(lm.model) as wide:
        exact = teacher_forced(wide, text)[steps]
    return grade(ours, eager, exact, torch.tensor(told, device=exact.device), factor)


def teacher_forced(model: Any, ids: Sequence[int]) -> torch.Tensor:
    """Logits [len(ids), vocabulary] of a Hugging Face model, in one pass."""
    with torch.no_grad():
        logits: torch.Tensor = model(torch.tensor([list(ids)], device=model.device), use_cache=False).logits[0]
    return logits
