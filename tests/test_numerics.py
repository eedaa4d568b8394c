"""Grades: a near tie is counted apart, a wrong token is found, and float64 is float64 throughout."""

import pytest
import torch
from torch import Tensor, nn

from mkc.numerics import allowed, grade, in_float64, largest

EXACT = torch.tensor([[3.0, 1.0, 0.0], [2.0, 1.999, -1.0]], dtype=torch.float64)  # the second step is a near tie
EAGER = (EXACT + torch.tensor([0.0, 0.01, -0.01])).float()


def test_equal_logits_pass_and_near_ties_are_counted_apart() -> None:
    found = grade(EXACT.float(), EAGER, EXACT)
    assert found.passed
    assert (found.steps, found.clear, found.ties, found.agree, found.ties_agree, found.eager_ties_agree) == (2, 1, 1, 1, 1, 0)
    assert found.factor < 1e-4
    assert found.kl < found.eager_kl


def test_the_other_token_of_a_near_tie_is_right_but_seen() -> None:
    found = grade(EXACT.float(), EAGER, EXACT, tokens=torch.tensor([0, 1]))
    assert (found.passed, found.ties_agree, found.wrong) == (True, 0, 0)
    assert "0 of 1 near ties" in str(found)


@pytest.mark.parametrize("tokens", [[1, 0], [0, 2]])
def test_a_token_that_is_no_tie_is_wrong_whatever_the_logits(tokens: list[int]) -> None:
    found = grade(EXACT.float(), EAGER, EXACT, tokens=torch.tensor(tokens))
    assert (found.passed, found.wrong) == (False, 1)
    assert str(found).startswith("FAILED")


def test_logits_too_far_off_fail_even_if_every_token_is_right() -> None:
    found = grade(EXACT.float() - torch.tensor([0.0, 0.0, 0.03]), EAGER, EXACT)
    assert (found.wrong, found.within, found.passed) == (0, False, False)
    assert found.factor == pytest.approx(3, rel=1e-3)


def test_logits_that_are_not_numbers_fail() -> None:
    assert not grade(EXACT.float() * torch.nan, EAGER, EXACT).passed


def test_the_divergence_is_that_of_torch() -> None:
    expected = nn.functional.kl_div(EAGER.double().log_softmax(-1), EXACT.log_softmax(-1), log_target=True, reduction="batchmean")
    assert grade(EAGER, EAGER, EXACT).kl == pytest.approx(expected.item(), rel=1e-9)


def test_what_eager_is_off_by_is_allowed_twice() -> None:
    one = torch.ones(3, dtype=torch.float64)
    assert allowed(one.float() + 0.5, one)[0].item() == pytest.approx(1.0, rel=1e-5)
    assert largest(torch.empty(0)) == 0


class Narrow(nn.Module):
    """Asks for float32 by name, as norms do."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([1 / 3]))

    def forward(self, x: Tensor) -> Tensor:
        wide = x.to(torch.float32) + x.float() + torch.zeros(1, dtype=torch.float32)
        return wide.softmax(-1, dtype=torch.float32) * self.weight * wide


def test_a_model_in_float64_narrows_nothing() -> None:
    with in_float64(Narrow()) as model:
        result = model(torch.tensor([1 / 7], dtype=torch.float64))
    assert result.item() == 2 / 7 * float(torch.tensor(1 / 3))
