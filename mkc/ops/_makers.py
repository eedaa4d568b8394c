"""Who made a tensor of a graph that is being built, and whether what went into it is still there."""

from itertools import takewhile

from mkc.ir.builder import Builder
from mkc.ir.graph import Kind, Node, Tensor


def maker(b: Builder, x: Tensor, op: str) -> Node | None:
    """The operator of this name that alone wrote the memory of x."""
    makers = b.writers.get(x.storage, [])
    alone = len(makers) == 1 and makers[0].op == op and x.storage.kind is Kind.ARENA
    return makers[0] if alone else None


def changed_since(b: Builder, node: Node, x: Tensor) -> bool:
    """True when what `node` read of x is no longer there."""
    later = takewhile(lambda n: n is not node, reversed(b.nodes))
    return any(t.storage == x.storage for n in later for t in n.outputs)
