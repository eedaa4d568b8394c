"""Graph -> Graph. What a state is to hold in the end is made there, and not copied from scratch, where nobody can tell."""

from mkc.ir.expr import Arg
from mkc.ir.graph import Graph, Kind, Node, Tensor
from mkc.passes._uses import Uses, rewritten


def at_home(graph: Graph) -> Graph:
    while (copy := _needless(Uses(graph))) is not None:
        graph = _without(graph, copy)
    return graph


def _needless(uses: Uses) -> int | None:
    return next((number for number in range(len(uses.nodes)) if _is_needless(uses, number)), None)


def _is_needless(uses: Uses, copy: int) -> bool:
    """The node copies all of what another makes into all of a state, which nobody looks at in between and nobody else writes."""
    node = uses.nodes[copy]
    if node.op != "elementwise" or node["expr"] != Arg(0) or not _is_whole(node):
        return False
    made, state = node.inputs[0].storage, node.output.storage
    if made.kind is not Kind.ARENA or state.kind is not Kind.STATE or made in uses.returned:
        return False
    if len(uses.writers[made]) != 1 or uses.writers[state] != [copy]:
        return False
    (maker,) = uses.writers[made]
    return maker < copy and not any(maker <= reader < copy for reader in uses.readers[state])


def _is_whole(node: Node) -> bool:
    """One operand, of the result's type, and both are all of their storages, in the same order."""
    tensors = (*node.inputs, node.output)
    plain = all(t.layout.is_contiguous and t.nbytes == t.storage.nbytes for t in tensors)
    return plain and [t.dtype for t in tensors] == [node.output.dtype] * 2


def _without(graph: Graph, copy: int) -> Graph:
    made, state = graph.nodes[copy].inputs[0].storage, graph.nodes[copy].output.storage

    def view(t: Tensor) -> Tensor:
        return Tensor(t.dtype, t.layout, state) if t.storage == made else t

    return rewritten(graph, {copy: None}, view)
