"""How streaming workers run an operator: the template arguments of a task's body, its weights, and its shared memory."""

from collections.abc import Callable
from dataclasses import dataclass

from mkc.ir.expr import Const
from mkc.ir.graph import Node, Tensor
from mkc.ir.tiling import Range
from mkc.ops._epilogue import epilogue
from mkc.ops._functions import cpp

Ranges = tuple[Range, ...]

TILE_ROWS = 8  # rows of weights that pass the tensor cores together
FRAGMENT_DEPTH = 256  # of a tile: 32 for each of 8 compute warps
BATCHES = (2, 3, 4, 5, 6)  # slots of 4 fragments that compute warps may hold at once


@dataclass(frozen=True, slots=True)
class Streaming:
    """`passage` says which tiles of the weights a task multiplies: the first, how many, and their depth in fragments."""

    arguments: Callable[[Node, Ranges], tuple[str, ...]]  # of the body of one task
    input_bytes: Callable[[Node], int]  # of shared memory
    weights: Callable[[Node], tuple[Tensor, ...]] = lambda node: ()
    passage: Callable[[Node, Ranges], tuple[int, int, int]] = lambda node, ranges: (0, 0, 0)


def fragments(depth: int) -> int:
    """How many fragments deep a tile is, padded so that batches of them make whole tiles, or whole shares of one."""
    count = -(-depth // FRAGMENT_DEPTH)
    while not any(4 * batch % count == 0 or count % (4 * batch) == 0 for batch in BATCHES):
        count += 1
    return count


# ---- stream_linear


def _depth(node: Node) -> int:
    return _weights(node)[0].shape[1]


def _weights(node: Node) -> tuple[Tensor, ...]:
    count = node["weights"]
    assert isinstance(count, int)
    first = 1 + (_number(node, "eps") > 0) + 2 * (_number(node, "merge") > 0)
    return node.inputs[first : first + count]


def _passage(node: Node, ranges: Ranges) -> tuple[int, int, int]:
    (begin, end), outputs = ranges[0], TILE_ROWS // 2 if node["gated"] else TILE_ROWS
    first = begin // outputs
    return first, -(-end // outputs) - first, fragments(_depth(node))


def _linear_arguments(node: Node, ranges: Ranges) -> tuple[str, ...]:
    _, tiles, depth = _passage(node, ranges)
    heads = node.inputs[0].shape[1] if node["merge"] else 0
    numbers = (tiles, depth, _depth(node))
    return (
        cpp(epilogue(node)), *_norm(node), *map(str, numbers), str(bool(node["gated"])).lower(),
        str(int(_number(node, "merge"))), str(heads),
    )  # fmt: skip


def _norm(node: Node) -> tuple[str, str]:
    eps = _number(node, "eps")
    return cpp(Const(float(eps))), str(eps > 0).lower()


def _number(node: Node, key: str) -> float:
    value = node[key]
    assert isinstance(value, int | float)
    return value


LINEAR = Streaming(_linear_arguments, lambda node: 2 * FRAGMENT_DEPTH * fragments(_depth(node)), _weights, _passage)


# ---- decode_attention


def _attention_arguments(node: Node, ranges: Ranges) -> tuple[str, ...]:
    heads, depth = node.inputs[0].shape
    return (
        cpp(Const(_number(node, "scale"))), *_norm(node), str(bool(node["rotary"])).lower(),
        str(int(_number(node, "splits"))), str(heads), str(depth),
    )  # fmt: skip


def _attention_bytes(node: Node) -> int:
    """Rows of q, k and v, then what each of 8 warps found: sums, the highest score, the total."""
    (heads, depth), kv_heads = node.inputs[0].shape, node.inputs[1].shape[0]
    return 10 * (2 * depth + 16) + 8 * heads // kv_heads * (4 * depth + 8)


ATTENTION = Streaming(_attention_arguments, _attention_bytes)
