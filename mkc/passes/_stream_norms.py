"""Graph -> Graph. A norm that moves the residual in moves into the streams that follow, which do not wait for the one worker.

What that worker makes is still the residual of what comes later. Its node goes behind the streams that no longer wait for it.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace

from mkc.ir.expr import Arg, Call, Expr, substitute
from mkc.ir.graph import Graph, Kind, Node, Storage, Tensor
from mkc.ir.program import MAX_OPERANDS
from mkc.ops._epilogue import epilogue
from mkc.ops.rms_norm import offset_of
from mkc.ops.stream_linear import batch, extras, post_epsilon
from mkc.passes._uses import Uses

DEEPEST = 1 << 12  # a row that talking threads hold beside another


def move_in(graph: Graph) -> Graph:
    uses = Uses(graph)
    nodes = list(graph.nodes)
    behind: dict[int, int] = {}  # where norms go: before which node
    for number, node in enumerate(graph.nodes):
        found = _sum(node) if node.op == "stream_norm" else None
        readers = _readers(uses, number) if found else []
        if found and readers:
            for reader in readers:
                nodes[reader] = _normed(nodes[reader], node, found)
            behind[number] = _next_stream(uses, readers[-1])
    return replace(graph, nodes=tuple(_moved(nodes, behind)))


def _moved(nodes: list[Node], behind: dict[int, int]) -> Iterable[Node]:
    for number in range(len(nodes) + 1):
        yield from (nodes[norm] for norm, place in behind.items() if place == number)
        if number < len(nodes) and number not in behind:
            yield nodes[number]


# ---- the norm


@dataclass(frozen=True, slots=True)
class _Sum:
    """residual + x / sqrt(mean(x^2) + eps) * (gain + offset): residual [1, K], gain [K]."""

    residual: Tensor
    gain: Tensor
    offset: float


def _sum(norm: Node) -> _Sum | None:
    """What the node makes, if it is that, whatever is rounded on the way."""
    if len(norm.inputs) != 3 or norm["centred"] or not norm["eps"]:
        return None
    match epilogue(norm):
        case Call("to_bfloat16", (Call("add", (a, b)),)) | Call("add", (a, b)):
            found = (_summed(norm, *pair) for pair in ((a, b), (b, a)))
            return next((s for s in found if s), None)
    return None


def _summed(norm: Node, kept: Expr, scaled: Expr) -> _Sum | None:
    """The same, where `kept` is one operand and `scaled` is to be the norm times the other."""
    match kept:
        case Arg(1 | 2 as index) | Call("to_float32", (Arg(1 | 2 as index),)):
            residual, gain = norm.inputs[index], norm.inputs[3 - index]
            offset = offset_of(substitute(scaled, lambda arg: Arg((0, 3 - index, index).index(arg.index))))
            row = gain.layout.reshape((gain.layout.numel,))
            if offset is not None and row and gain.storage.kind is Kind.PARAM:
                return _Sum(residual, gain.view(row), offset)
    return None


# ---- who reads it


def _readers(uses: Uses, number: int) -> list[int]:
    """The streams that take the norm in, when all others who read it have time."""
    norm = uses.nodes[number]
    made = norm.output.storage
    taking = [r for r in uses.readers[made] if _takes(uses, number, r)]
    if not taking or made.kind is not Kind.ARENA or len(uses.writers[made]) != 1:
        return []
    place = _next_stream(uses, taking[-1])
    patient = all(_has_time(uses, reader, place, made) for reader in uses.readers[made] if reader not in taking)
    return taking if patient and uses.are_still(norm.inputs, number, place) else []


def _has_time(uses: Uses, reader: int, place: int, made: Storage) -> bool:
    """True when the node comes after the stream that follows, or is that stream and wants the norm for its results alone."""
    return place < reader or (place == reader and uses.nodes[reader].inputs[0].storage != made)


def _takes(uses: Uses, number: int, reader: int) -> bool:
    """True when the node is a stream of the RMS norm of this one row, and of nothing else that was made there."""
    norm, node = uses.nodes[number], uses.nodes[reader]
    if node.op != "stream_linear" or number > reader:
        return False
    plain = batch(node) == 1 and node["eps"] and not (node["centred"] or node["shifted"] or node["merge"] or post_epsilon(node))
    row, made = node.inputs[0].layout, norm.output.layout
    same = row.numel == made.numel and row.is_contiguous and row.offset == made.offset and row.numel <= DEEPEST
    once = [t.storage for t in node.inputs].count(norm.output.storage) == 1 and node.inputs[0].storage == norm.output.storage
    few = 1 + 4 + len(extras(node)) <= MAX_OPERANDS
    return bool(plain and same and once and few)


def _next_stream(uses: Uses, number: int) -> int:
    """The first stream of weights after the node, or the end."""
    streams = (n for n in range(number + 1, len(uses.nodes)) if uses.nodes[n].op == "stream_linear")
    return next(streams, len(uses.nodes))


def _normed(node: Node, norm: Node, found: _Sum) -> Node:
    """The stream of what the norm is made of."""
    x, gain = norm.inputs[0], node.inputs[1]
    wider = node.with_attrs(post_eps=norm["eps"], post_offset=found.offset)
    return replace(wider, inputs=(x, gain, found.residual, found.gain, *node.inputs[2:]))
