"""pool[page[n], :, row[n]] = source[n]: rows of a KV cache in pages, written where they lie."""

from collections.abc import Sequence

from mkc.ir.cost import cut
from mkc.ir.dtype import Array
from mkc.ir.graph import Node
from mkc.ir.target import Target
from mkc.ir.tiling import Split, TileMap, Tiling
from mkc.ops import Op


def reference(node: Node, ins: Sequence[Array]) -> tuple[Array, ...]:
    """page and row [N], source [N, H, D], pool [P, H, R, D]; the pool as it is then.

    An index below zero counts from the end. Rows of which an index lies outside of the pool are left out; of several rows for
    one place the last stays.
    """
    pages, rows, source, pool = ins
    written = pool.copy()
    for n, (page, row) in enumerate(zip(pages, rows, strict=True)):
        if -len(pool) <= page < len(pool) and -pool.shape[2] <= row < pool.shape[2]:
            written[page, :, row] = source[n]
    return (written,)


def tile(node: Node, target: Target) -> Tiling:
    """Heads are shared out. Any page may be written by any task."""
    pages, rows, source, pool = node.inputs
    (heads,) = cut(target, (pool.shape[1],), 2 * source.nbytes, 0)
    share = min(1.0, source.layout.numel / pool.layout.numel)
    dims = (None, Split(0), None, None)
    imaps = (TileMap(pages, (None,)), TileMap(rows, (None,)), TileMap(source, dims[:3]), TileMap(pool, dims, share))
    return Tiling((heads,), imaps, (TileMap(node.output, dims, share),))


OP = Op("append_pages", "AppendPages", tile, reference)
