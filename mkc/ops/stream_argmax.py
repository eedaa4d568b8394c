"""y = Expr(where the best element of a row stands, ...), of which streams told the best of each share."""

from collections.abc import Sequence

import numpy as np

from mkc.ir.dtype import Array
from mkc.ir.graph import Node
from mkc.ir.target import Target
from mkc.ir.tiling import Axis, Split, TileMap, Tiling, whole
from mkc.ops import Op, Streaming
from mkc.ops._epilogue import along_output, finish, stored

TALK_WARPS = 4  # each has a best, in 8 bytes


def reference(node: Node, ins: Sequence[Array]) -> tuple[Array, ...]:
    """Entries [P, 2] in the order of the row, or [B, P, 2] of rows: values, and the bits of their places; then further
    operands of the epilogue, in the shape of the result. One place for each row: of the first of equals; NaN before all."""
    entries, *extras = ins
    rows = entries.reshape(-1, *entries.shape[-2:])
    places = np.ascontiguousarray(rows[..., 1]).view(np.int32)
    found = [row[np.argmax(values)] for row, values in zip(places, rows[..., 0], strict=True)]
    return (finish(node, np.array(found, np.int64).reshape(-1, *node.output.shape[1:]), extras),)


def tile(node: Node, target: Target) -> Tiling:
    """A task for each row, each on a worker of its own: all have just finished their shares, and nobody waits for another's row."""
    (entries, *extras), place = node.inputs, node.output
    if entries.layout.rank == 2:
        return Tiling((Axis(1),), tuple(map(whole, node.inputs)), (whole(place),))
    rows, along = entries.shape[0], (Split(0), *[None] * (place.layout.rank - 1))
    imaps = (TileMap(entries, (Split(0), None, None)), *along_output(extras, along))
    return Tiling((Axis(rows, rows),), imaps, (TileMap(place, along),), pinned=True)


def arguments(node: Node, tiling: Tiling) -> tuple[str, ...]:
    return (*stored(node), str(node.inputs[0].shape[-2]))


def input_bytes(node: Node) -> int:
    return 8 * TALK_WARPS


OP = Op("stream_argmax", "StreamArgMax", tile, reference, streaming=Streaming(arguments, input_bytes, computes=False))
