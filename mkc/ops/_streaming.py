"""What operators that stream their weights share: how deep a tile is, and the template arguments of a norm."""

from dataclasses import dataclass
from math import lcm

from mkc.ir.expr import Const
from mkc.ir.graph import Node
from mkc.ops._functions import cpp

VECTOR = 8  # elements that are read at once
MOST_ROWS = 16  # of activations, which meet the same stream of weights
TILE_ROWS = 8  # rows of weights that pass the tensor cores together
COMPUTE_WARPS = 8
FRAGMENT_DEPTH = 32 * COMPUTE_WARPS  # of a tile
ABREAST = (1, 2, 4, 8)  # tiles that pass side by side, each through as many of the compute warps
SUM_BYTES = COMPUTE_WARPS * TILE_ROWS * 4  # of a tile and a row: float32 of each compute warp
BATCHES = (2, 3, 4, 5, 6)  # slots of 4 fragments that compute warps may hold at once
LONGEST_PERIOD = 80  # fragments that batches take turns in
HELD = 4 * BATCHES[-1]  # fragments of a task that compute warps may hold, all of them, before its input comes


def fragments(depth: int, beside: int = 1) -> int:
    """How many fragments deep a tile is, so many of which pass side by side, padded so that batches of them make whole
    tiles, or whole shares of one.

    Else batches take turns, when not too many make whole tiles together.
    """
    count = -(-depth * beside // FRAGMENT_DEPTH)
    while not _is_even(count) and lcm(count, 4) > LONGEST_PERIOD:
        count += 1
    return count


def tiles_abreast(depth: int, tiles: int, workers: int) -> int:
    """How many tiles of a row's stream pass side by side, so that padding is least: where most is read, and then in all."""

    def read(beside: int) -> tuple[int, int]:
        """Fragments of the worker with the largest share, and of all."""
        count, together = fragments(depth, beside), -(-tiles // beside)
        return -(-together // workers) * count, together * count

    return min(ABREAST, key=read)


def even_fragments(depth: int) -> int:
    """The same, where batches take no turns."""
    count = -(-depth // FRAGMENT_DEPTH)
    while not _is_even(count):
        count += 1
    return count


def _is_even(count: int) -> bool:
    return any(4 * batch % count == 0 or count % (4 * batch) == 0 for batch in BATCHES)


MOST_INPUT = 104 << 10  # bytes of shared memory that leave room for a ring of weights
MOST_TILES = 24  # whose sums meet at once


def rounds(batch: int, outputs: int) -> int:
    """Tiles of so many outputs whose sums meet at once: no more than a talking thread has four of, and 24 KB of sums."""
    return min(MOST_TILES, (96 if outputs < TILE_ROWS else 64) // batch)


@dataclass(frozen=True, slots=True)
class Passage:
    """How the tiles of several rows' stream pass: their depth in fragments; how much of the rows is in shared memory at
    once, all of it or a chunk and the next; and the tiles whose sums meet at once, or are in registers all the while."""

    fragments: int
    chunk: int
    group: int
    input_bytes: int


def passage_of(batch: int, depth: int, outputs: int) -> Passage:
    count, group = even_fragments(depth), rounds(batch, outputs)
    beside = batch * group * SUM_BYTES + 16 * batch  # sums, and of each talking warp a part of every norm
    if (whole := _row_bytes(batch, count)) + beside <= MOST_INPUT:
        return Passage(count, count, group, whole + beside)
    count = -(-count // 4) * 4
    chunk, group = 8 if count % 8 == 0 and batch <= 8 else 4, 16 // -(-batch // 4)
    return Passage(count, chunk, group, 2 * _row_bytes(batch, chunk) + batch * group * SUM_BYTES + 16 * batch)


def _row_bytes(batch: int, count: int) -> int:
    return 2 * batch * count * FRAGMENT_DEPTH


def norm(node: Node) -> tuple[str, str, str]:
    """Epsilon, what is added to gains, and whether there is a norm at all."""
    return cpp(Const(epsilon(node))), cpp(Const(offset(node))), truth(epsilon(node) > 0)


def epsilon(node: Node) -> float:
    """0 when there is no norm."""
    return node.number("eps")


def offset(node: Node) -> float:
    """What is added to the gains of a norm."""
    return node.number("offset")


def truth(value: object) -> str:
    return str(bool(value)).lower()
