"""fuse: what is quickly computed is computed again for each reader, and repeated for those who see it repeated."""

import torch
from numerics import assert_as_torch
from oracle import raised
from torch import nn

from mkc.passes.fuse import fuse


def nodes(fast: object) -> list[str]:
    return [f"{n.op} {dict(n.attrs).get('expr', '')}" for n in fast.compilation.sections[0].fused.nodes]  # type: ignore[attr-defined]


def angles(position: torch.Tensor, frequencies: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """As models spell them."""
    turns = (frequencies[None, :, None].float() @ position[None, None, :].float()).transpose(1, 2)
    both = torch.cat((turns, turns), dim=-1)
    return both.cos(), both.sin()


def test_tables_of_angles_come_straight_from_the_position() -> None:
    fast = assert_as_torch(angles, torch.tensor([37]), torch.rand(32).to(torch.bfloat16))
    turns = "mul(to_float32(%1), to_float32(%0))"
    assert nodes(fast) == [f"elementwise cos({turns})", f"elementwise sin({turns})"]


def test_a_product_over_one_element_is_elementwise() -> None:
    fast = assert_as_torch(lambda x, w, b: nn.functional.linear(x, w, b).relu(), torch.randn(5, 1), torch.randn(7, 1), torch.randn(7))
    assert nodes(fast) == ["elementwise relu(add(mul(%0, %1), %2))"]


def test_a_widened_tensor_is_not_kept() -> None:
    """Both readers widen it on their own."""
    fast = assert_as_torch(lambda x: (x.float().exp(), x.float() * 2), torch.randn(40).to(torch.bfloat16))
    assert sorted(nodes(fast)) == ["elementwise exp(to_float32(%0))", "elementwise mul(to_float32(%0), 2)"]


def test_what_takes_long_is_computed_once() -> None:
    def shared(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        y = x.exp()
        return y + 1, y[None].expand(3, 40) * 2

    fast = assert_as_torch(shared, torch.randn(40))
    assert sum("exp" in node for node in nodes(fast)) == 1


class Count(nn.Module):
    def forward(self, position: torch.Tensor) -> None:
        position.copy_(position + 1)


def test_a_count_goes_on_in_its_place() -> None:
    (node,) = fuse(raised(Count(), torch.tensor([3])).graph).nodes
    assert str(node) == "in0:int64[1] = elementwise(in0:int64[1], expr=add(%0, 1))"
