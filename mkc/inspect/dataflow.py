"""Graph -> networkx. Operators as nodes, and the tensors that they hand on as edges."""

from dataclasses import fields

import networkx as nx

from mkc.ir.graph import Graph, Storage, Tensor
from mkc.ir.span import Span, span


class Dataflow(Graph):
    """A Graph that networkx can look at, which `mkc.ir` knows nothing of."""

    __slots__ = ()

    @staticmethod
    def of(graph: Graph) -> "Dataflow":
        return Dataflow(**{field.name: getattr(graph, field.name) for field in fields(graph)})

    def to_networkx(self) -> nx.MultiDiGraph:
        """Operators by name, with `op`, `path` and `text`; an edge for each tensor, as read, with `tensor` and `nbytes`.

        It comes from whoever last wrote some of its bytes; inputs and parameters come from nobody and have no edges.
        """
        graph = nx.MultiDiGraph(name=self.name)
        writers: dict[Storage, list[tuple[str, Span]]] = {}
        for node in self.nodes:
            graph.add_node(node.name, op=node.op, path=node.path, text=str(node))
            for tensor in dict.fromkeys(node.inputs):
                for writer, written in writers.get(tensor.storage, []):
                    if written.meets(_bytes(tensor)):
                        graph.add_edge(writer, node.name, tensor=str(tensor), nbytes=tensor.nbytes)
            for tensor in node.outputs:
                own = _bytes(tensor)
                earlier = [(writer, s) for writer, s in writers.get(tensor.storage, []) if not own.covers(s)]
                writers[tensor.storage] = [*earlier, (node.name, own)]
        return graph


def _bytes(tensor: Tensor) -> Span:
    return span(tensor.layout, tuple((0, n) for n in tensor.shape), tensor.dtype.itemsize)
