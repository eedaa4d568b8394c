"""Who made a tensor of a graph that is being built, and whether what went into it is still there."""

from mkc.ir.builder import Builder
from mkc.ir.graph import Kind, Node, Tensor


def maker(b: Builder, x: Tensor, op: str) -> Node | None:
    """The operator of this name that alone wrote the memory of x."""
    makers = [n for n in b.nodes if any(t.storage == x.storage for t in n.outputs)]
    alone = len(makers) == 1 and makers[0].op == op and x.storage.kind is Kind.ARENA
    return makers[0] if alone else None


def changed_since(b: Builder, node: Node, x: Tensor) -> bool:
    """True when what `node` read of x is no longer there."""
    later = b.nodes[b.nodes.index(node) + 1 :]
    return any(t.storage == x.storage for n in later for t in n.outputs)
