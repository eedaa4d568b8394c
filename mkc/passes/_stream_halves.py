"""Graph -> Graph. Where tiles are too few to share out evenly, they become twice as many: of half as many outputs, in two halves.

A tile is 8 rows of weights, whole. Of 144 tiles for 132 workers twelve have two, and all others wait for them. In a tile of 4
outputs the other 4 rows are the second half of their depth, and meet the second half of the row: 288 of them, three at most.
"""

from dataclasses import replace

from mkc.ir.graph import Graph, Node, Tensor
from mkc.ir.program import SLOT_FRAGMENTS
from mkc.ir.target import Target
from mkc.ops._streaming import VECTOR, epsilon
from mkc.ops.stream_linear import abreast, batch, first_weight, most_read, weights
from mkc.passes._stream_words import WORD
from mkc.passes._uses import rewritten

WORTH = 8  # an eighth less for the worker that reads most, and a slot: two sums are more work than one


def halve(graph: Graph, target: Target) -> Graph:
    changes = {i: _halved(node, target) for i, node in enumerate(graph.nodes) if _may_be(node)}
    return rewritten(graph, {i: half for i, half in changes.items() if _pays(half, graph.nodes[i], target)})


def _may_be(node: Node) -> bool:
    """One row, as it is, times one weight."""
    if node.op != "stream_linear" or batch(node) > 1 or node["gated"] or node["best"] or node["merge"] or epsilon(node):
        return False
    n, depth = weights(node)[0].shape
    return len(weights(node)) == 1 and n % WORD == 0 and depth % (2 * VECTOR) == 0


def _halved(node: Node, target: Target) -> Node:
    at, weight = first_weight(node), weights(node)[0]
    halves = tuple(_columns(weight, half) for half in range(2))
    inputs = (*node.inputs[:at], *halves, *node.inputs[at + 1 :])
    half = replace(node.with_attrs(weights=2, gated=True, halved=True, abreast=1), inputs=inputs)
    return half.with_attrs(abreast=abreast(half, target))


def _columns(weight: Tensor, half: int) -> Tensor:
    """[N, K / 2]"""
    depth = weight.shape[1] // 2
    return weight.view(weight.layout.slice(1, half * depth, (half + 1) * depth))


def _pays(half: Node, node: Node, target: Target) -> bool:
    """Less is read by whoever reads most, and no more by all together."""
    (most, together), (before, all_before) = most_read(half, target), most_read(node, target)
    return before - most >= max(before / WORTH, SLOT_FRAGMENTS) and together <= all_before
