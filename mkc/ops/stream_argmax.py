"""y = where the best element of a row stands, of which streams told the best of each share."""

from collections.abc import Sequence

import numpy as np

from mkc.ir.dtype import Array
from mkc.ir.graph import Node
from mkc.ir.target import Target
from mkc.ir.tiling import Axis, Range, Tiling, whole
from mkc.ops import Op, Streaming

TALK_WARPS = 4  # each has a best, in 8 bytes


def reference(node: Node, ins: Sequence[Array]) -> tuple[Array, ...]:
    """Entries [P, 2], in the order of the row: values, and the bits of their places. The first of equals; NaN before all."""
    (entries,) = ins
    places = np.ascontiguousarray(entries[:, 1]).view(np.int32)
    return (np.full(node.output.shape, places[np.argmax(entries[:, 0])], np.int64),)


def tile(node: Node, target: Target) -> Tiling:
    return Tiling((Axis(1),), (whole(node.inputs[0]),), (whole(node.output),))


def arguments(node: Node, ranges: tuple[Range, ...]) -> tuple[str, ...]:
    return (str(node.inputs[0].shape[0]),)


def input_bytes(node: Node) -> int:
    return 8 * TALK_WARPS


OP = Op("stream_argmax", "StreamArgMax", tile, reference, streaming=Streaming(arguments, input_bytes, computes=False))
