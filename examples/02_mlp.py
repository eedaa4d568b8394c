"""Lesson 2: a module becomes tasks, and tasks wait for tiles, not for layers.

    python examples/02_mlp.py

Each linear layer is cut into tasks by rows of its weight. A task of the second layer reads all of the first layer's
output, so it waits for all of its tasks; the residual reads only its own tile. The plan below says who waits for whom.
"""

import torch
from torch import nn

import mkc


@mkc.compile
class MLP(nn.Module):
    """[batch, width] -> [batch, width], with a residual."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.up = nn.Linear(width, hidden)
        self.down = nn.Linear(hidden, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.down(nn.functional.gelu(self.up(self.norm(x))))


def main() -> None:
    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    mlp = MLP(256, 1000).eval().to(device)
    x = torch.randn(2, 256, device=device)

    with torch.no_grad():
        out = mlp(x)
        torch.testing.assert_close(out, mlp.forward(x), atol=1e-5, rtol=1e-5)

    lowering = mlp.mkc.compilation.sections[0]
    print(lowering.fused, end="\n\n")
    print("\n".join(str(lowering.events).splitlines()[:20]), end="\n\n")
    print("\n".join(line[:150] for line in str(lowering.schedule).splitlines()[:8]))


if __name__ == "__main__":
    main()
