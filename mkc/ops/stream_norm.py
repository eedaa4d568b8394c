"""y = Expr(x / sqrt(mean(x^2) + eps), ...) for one row, of which one worker tells all others: a norm that more than streams read."""

from collections.abc import Sequence

import numpy as np

from mkc.ir.dtype import Array
from mkc.ir.expr import Const
from mkc.ir.graph import Node
from mkc.ir.target import Target
from mkc.ir.tiling import Axis, Tiling, whole
from mkc.ops import Op, Streaming
from mkc.ops._epilogue import epilogue, finish
from mkc.ops._functions import cpp
from mkc.ops._streaming import truth

TALK_WARPS = 4  # each has a sum, in 4 bytes


def reference(node: Node, ins: Sequence[Array]) -> tuple[Array, ...]:
    """x [1, K], then further operands [1, K] of the epilogue; of x less its mean if `centred`."""
    x, *extras = ins
    x = x - np.mean(x, axis=-1, keepdims=True) if node["centred"] else x
    mean = np.mean(np.square(x), axis=-1, keepdims=True)
    return (finish(node, x / np.sqrt(mean + node["eps"]), extras),)


def tile(node: Node, target: Target) -> Tiling:
    return Tiling((Axis(1),), tuple(map(whole, node.inputs)), (whole(node.output),))


def flops(node: Node) -> float:
    return 8.0 * node.output.layout.numel


def arguments(node: Node, tiling: Tiling) -> tuple[str, ...]:
    return cpp(epilogue(node)), cpp(Const(node.number("eps"))), truth(node["centred"]), str(node.output.layout.numel)


def input_bytes(node: Node) -> int:
    return 4 * TALK_WARPS


STREAMING = Streaming(arguments, input_bytes, computes=False)
OP = Op("stream_norm", "StreamNorm", tile, reference, flops=flops, streaming=STREAMING)
