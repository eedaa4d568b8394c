"""Lesson 1: a function of tensors becomes one kernel.

    python examples/01_elementwise.py

Five calls of PyTorch are five kernels and four round trips through memory. Here they are one expression, read once and
written once: look for the nested `Call<...>` on the page.
"""

import torch

import mkc


@mkc.compile
def swish_blend(x: torch.Tensor, y: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """x, y: [rows, columns]; weight: [columns], broadcast over the rows."""
    gate = torch.sigmoid(x * weight + 0.5)
    return gate * x + (1 - gate) * torch.tanh(y)


def main() -> None:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    x, y = torch.randn(2, 300, 250, device=device).unbind()
    weight = torch.randn(250, device=device)

    out = swish_blend(x, y, weight)

    torch.testing.assert_close(out, swish_blend.model(x, y, weight))
    lowering = swish_blend.compilation.sections[0]
    print(f"{len(lowering.graph.nodes)} operators as traced, {len(lowering.fused.nodes)} after fusion:")
    print(lowering.fused)
    print(f"cut into {len(lowering.tasks.tasks)} tasks for {lowering.schedule.target}, and equal to PyTorch")


if __name__ == "__main__":
    main()
