"""Who writes and who reads each storage of a Graph, by the numbers of its nodes; and the changes that a rewrite makes to it."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace

from mkc.ir.graph import Graph, Kind, Node, Storage, Tensor


class Uses:
    """An index of a graph as it is."""

    def __init__(self, graph: Graph) -> None:
        self.nodes = graph.nodes
        self.returned = {t.storage for t in graph.outputs}
        self.writers: dict[Storage, list[int]] = defaultdict(list)
        self.readers: dict[Storage, list[int]] = defaultdict(list)
        for number, node in enumerate(graph.nodes):
            for storage in dict.fromkeys(t.storage for t in node.inputs):
                self.readers[storage].append(number)
            for storage in dict.fromkeys(t.storage for t in node.outputs):
                self.writers[storage].append(number)

    def maker(self, tensor: Tensor, *ops: str) -> int | None:
        """The one node, of these operators, that writes the tensor's scratch storage."""
        writers = self.writers[tensor.storage]
        if tensor.storage.kind is not Kind.ARENA or len(writers) != 1 or self.nodes[writers[0]].op not in ops:
            return None
        return writers[0]

    def is_private(self, tensor: Tensor, *readers: int) -> bool:
        """True when nobody looks at the tensor's scratch storage but these nodes."""
        storage = tensor.storage
        inside = storage.kind is Kind.ARENA and storage not in self.returned
        return inside and set(self.readers[storage]) <= set(readers)

    def are_still(self, tensors: Iterable[Tensor], first: int, last: int) -> bool:
        """True when what the node `first` reads of these is what the node `last` would read."""
        return not any(first <= w < last for t in tensors for w in self.writers[t.storage])


def rewritten(graph: Graph, changes: Mapping[int, Node | None], view: Callable[[Tensor], Tensor] = lambda t: t) -> Graph:
    """The graph with some nodes replaced or dropped, and with every tensor of it seen anew."""
    nodes = (changes.get(number, node) for number, node in enumerate(graph.nodes))
    kept = (_viewed(node, view) for node in nodes if node is not None)
    return replace(graph, nodes=tuple(kept))


def _viewed(node: Node, view: Callable[[Tensor], Tensor]) -> Node:
    return replace(node, inputs=tuple(map(view, node.inputs)), outputs=tuple(map(view, node.outputs)))
