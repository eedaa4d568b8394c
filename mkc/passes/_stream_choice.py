"""Graph -> Graph. A row of which only the best element is asked for is never stored: each share of its stream tells its best."""

from collections.abc import Iterable
from dataclasses import dataclass, replace

from mkc.ir.dtype import DType
from mkc.ir.expr import Call
from mkc.ir.graph import Graph, Node, Tensor, scratch
from mkc.ir.target import Target
from mkc.ops._epilogue import epilogue
from mkc.ops._streaming import TILE_ROWS
from mkc.ops.argmax import searched
from mkc.ops.stream_linear import batch
from mkc.passes._uses import Uses, rewritten


def choose(graph: Graph, target: Target) -> Graph:
    uses = Uses(graph)
    changes: dict[int, Node | None] = {}
    for number, node in enumerate(graph.nodes):
        choice = _choice(uses, number) if node.op == "argmax" and node["largest"] else None
        if choice:
            stream = _telling(uses.nodes[choice.stream], target)
            changes |= dict.fromkeys(choice.absorbed)
            changes |= {choice.stream: stream, number: _asking(node, stream.output)}
    return rewritten(graph, changes)


@dataclass(frozen=True, slots=True)
class _Choice:
    stream: int
    absorbed: tuple[int, ...]  # what searched the row in chunks before


def _choice(uses: Uses, number: int) -> _Choice | None:
    """The stream whose row is read by this argmax alone, or also by the one that finds its candidates."""
    node = uses.nodes[number]
    row, *candidates = searched(node)
    stream = uses.maker(row, "stream_linear")
    if stream is None or not _is_asked_for_one(uses.nodes[stream], row, node.output):
        return None
    absorbed = tuple(a for c in candidates if (a := _finder(uses, c, node, number)) is not None)
    private = uses.is_private(row, *absorbed, number) and len(absorbed) == len(candidates)
    return _Choice(stream, absorbed) if private and _follow(stream, uses.readers[row.storage]) else None


def _is_asked_for_one(stream: Node, row: Tensor, place: Tensor) -> bool:
    """The argmax sees all that the stream makes, row by row, and gives one place of each."""
    whole = row.layout.is_contiguous and row.layout.numel == stream.output.layout.numel
    same = row.shape[-1] == stream.output.shape[-1] and place.layout.numel == place.shape[0] == batch(stream)
    return whole and same and not stream["gated"] and not stream["best"]


def _finder(uses: Uses, candidates: Tensor, node: Node, number: int) -> int | None:
    """The argmax of chunks of the same row, for this reader alone."""
    finder = uses.maker(candidates, "argmax")
    if finder is None or not uses.is_private(candidates, number) or finder > number:
        return None
    first = uses.nodes[finder]
    alike = first.inputs == node.inputs[:1] and first["largest"] and first["chunk"] == node["chunk"]
    return finder if alike and first.output == candidates else None


def _follow(stream: int, readers: Iterable[int]) -> bool:
    return all(stream < reader for reader in readers)


def _telling(node: Node, target: Target) -> Node:
    """The stream with an entry [value, place] for each of equal shares, values rounded as they would have been stored."""
    row, (rows, count) = node.output, node.output.shape
    unit = TILE_ROWS * node.integer("abreast")
    share = unit * -(-count // (unit * target.workers))
    entries = scratch(f"{row.storage.name}_best", (*([rows] if rows > 1 else []), -(-count // share), 2), DType.F32)
    stored = Call("to_bfloat16", (epilogue(node),)) if row.dtype is DType.BF16 else epilogue(node)
    return replace(node.with_attrs(best=share, epilogue=stored), outputs=(entries,))


def _asking(node: Node, entries: Tensor) -> Node:
    name = node.name.replace("argmax", "stream_argmax")
    inputs = (entries, *node.inputs[len(searched(node)) :])
    return replace(node, name=name, op="stream_argmax", inputs=inputs, attrs=(("epilogue", epilogue(node)),))
