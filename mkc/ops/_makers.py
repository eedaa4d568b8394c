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
    writers = b.writers.get(x.storage)
    last = writers[-1] if writers else node
    return last is not node and any(later is last for later in takewhile(lambda n: n is not node, reversed(b.nodes)))
