"""What operators that stream their weights share: how deep a tile is, and the template arguments of a norm."""

from math import lcm

from mkc.ir.expr import Const
from mkc.ir.graph import Node
from mkc.ops._functions import cpp

TILE_ROWS = 8  # rows of weights that pass the tensor cores together
FRAGMENT_DEPTH = 256  # of a tile: 32 for each of 8 compute warps
BATCHES = (2, 3, 4, 5, 6)  # slots of 4 fragments that compute warps may hold at once
LONGEST_PERIOD = 80  # fragments that batches take turns in


def fragments(depth: int) -> int:
    """How many fragments deep a tile is, padded so that batches of them make whole tiles, or whole shares of one.

    Else batches take turns, when not too many make whole tiles together.
    """
    count = -(-depth // FRAGMENT_DEPTH)
    while not any(4 * batch % count == 0 or count % (4 * batch) == 0 for batch in BATCHES) and lcm(count, 4) > LONGEST_PERIOD:
        count += 1
    return count


def norm(node: Node) -> tuple[str, str, str]:
    """Epsilon, what is added to gains, and whether there is a norm at all."""
    return cpp(Const(epsilon(node))), cpp(Const(offset(node))), truth(epsilon(node) > 0)


def epsilon(node: Node) -> float:
    """0 when there is no norm."""
    return node.number("eps")


def offset(node: Node) -> float:
    """What is added to the gains of a norm."""
    return node.number("offset")


def truth(value: object) -> str:
    return str(bool(value)).lower()
