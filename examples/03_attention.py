"""Lesson 3: an attention block with grouped queries, in a single launch, and its timeline.

    python examples/03_attention.py

Views cost nothing: splitting heads, transposing and repeating key heads are strides on the page, not copies. The time
stamps come from inside the kernel.
"""

import torch
from torch import nn
from torch.nn import functional as F

import mkc

HEADS, KV_HEADS, WIDTH = 8, 2, 32


class Attention(nn.Module):
    """[batch, time, HEADS * WIDTH] -> the same; every KV head serves HEADS / KV_HEADS query heads."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(HEADS * WIDTH)
        self.query = nn.Linear(HEADS * WIDTH, HEADS * WIDTH, bias=False)
        self.key = nn.Linear(HEADS * WIDTH, KV_HEADS * WIDTH, bias=False)
        self.value = nn.Linear(HEADS * WIDTH, KV_HEADS * WIDTH, bias=False)
        self.out = nn.Linear(HEADS * WIDTH, HEADS * WIDTH, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.norm(x)
        q, k, v = (split(layer(h)) for layer in (self.query, self.key, self.value))
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        return x + self.out(mixed.transpose(1, 2).flatten(2))


def split(x: torch.Tensor) -> torch.Tensor:
    """[batch, time, heads * width] -> [batch, heads, time, width]"""
    return x.unflatten(-1, (-1, WIDTH)).transpose(1, 2)


def main() -> None:
    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    block = Attention().eval().to(device)
    x = torch.randn(1, 40, HEADS * WIDTH, device=device)

    with torch.no_grad():
        fast = mkc.compile(block, x)
        torch.testing.assert_close(fast(x), block(x), atol=1e-5, rtol=1e-5)
        stamps = fast.trace(x)

    print(fast.compilation.sections[0].fused, end="\n\n")
    start = int(stamps["taken"].min())
    names = fast.compilation.program.names
    print("worker   start us   wait us    run us  task")
    for s in stamps[:24]:
        taken, wait, run = int(s["taken"]) - start, int(s["ready"] - s["taken"]), int(s["done"] - s["ready"])
        print(f"{s['worker']:6d} {taken / 1e3:10.1f} {wait / 1e3:9.1f} {run / 1e3:9.1f}  {names[int(s['task'])]}")


if __name__ == "__main__":
    main()
