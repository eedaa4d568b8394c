"""One module per operator. A module here is a whole operator: nothing else needs to know its name.

A module may hold `OP`, an operator with tasks of its own, and `CLAIMS`, the calls of torch's functional dialect that
it raises, by name. Views and constants are claims without an operator. `PATTERN` rewrites a graph in which the
operator is spelled out in smaller ones.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from pkgutil import iter_modules
from typing import Any

from mkc.ir.dtype import Array
from mkc.ir.graph import Graph, Node, Tensor
from mkc.ir.program import Tiles
from mkc.ir.target import Target
from mkc.ir.tiling import Range, TileMap, Tiling

Ranges = tuple[Range, ...]
Claim = Callable[..., Any]  # (Builder, *args, **kwargs) -> Tensor | tuple[Tensor, ...]


def _no_arguments(node: Node) -> tuple[str, ...]:
    return ()


def _no_flops(node: Node) -> float:
    return 0.0


def _no_weights(node: Node) -> tuple[Tensor, ...]:
    return ()


def _own_body(node: Node) -> tuple[str, str] | None:
    return None


def _own_product(node: Node, tiles: int) -> str:
    return ""


def _all_inputs(node: Node, tiling: Tiling) -> Mapping[TileMap, Sequence[int]]:
    return dict.fromkeys(tiling.imaps, range(tiling.size))


def _no_passages(node: Node, tiling: Tiling) -> Sequence[Tiles]:
    return ((0, 0, 0, 0, 0, 0),) * tiling.size


@dataclass(frozen=True, slots=True)
class Streaming:
    """How streaming workers run an operator: its body has a part for the warps that talk, and one for those that compute.

    `weights` come through the ring instead of as operands, and `passages` say which of their tiles each task multiplies:
    the first, how many, their depth in fragments, and in which order (see `Pack`). One that only talks never `computes`.
    `product` is the type of what computes for so many tiles, where that is not the body too. `surely` gives the inputs that
    tasks wait for whatever the data are, where they are published, and which tasks. `body` is the header and the struct of nodes whose
    body is not the operator's own. Where `position` is the place of an input, rows of the tensors that are read and written
    come through the ring, as many as that integer says; no other node may write those.
    """

    arguments: Callable[[Node, Tiling], tuple[str, ...]]  # of the body
    input_bytes: Callable[[Node], int]  # of shared memory, beside the ring
    weights: Callable[[Node], tuple[Tensor, ...]] = _no_weights
    passages: Callable[[Node, Tiling], Sequence[Tiles]] = _no_passages
    computes: bool = True
    product: Callable[[Node, int], str] = _own_product
    surely: Callable[[Node, Tiling], Mapping[TileMap, Sequence[int]]] = _all_inputs
    body: Callable[[Node], tuple[str, str] | None] = _own_body
    position: int | None = None


@dataclass(frozen=True, slots=True)
class Op:
    """An operator of the compiler.

    `reference` is its meaning: it takes the boxes of the imaps as arrays (floats widened to float32) and gives the
    boxes of the omaps. `tile` cuts it into tasks. `struct` names its body in `templates/mkc/ops/<name>.cuh`, whose
    template arguments are `arguments(node)` followed by the views of the tiling's tensors. An operator that `stores`
    through an epilogue takes attribute "epilogue", whose operand 0 is the operator's own result and whose further
    operands are the node's last inputs.
    """

    name: str
    struct: str
    tile: Callable[[Node, Target], Tiling]
    reference: Callable[..., tuple[Array, ...]]  # (node, boxes), and with `ranged` the ranges of the grid point
    arguments: Callable[[Node], tuple[str, ...]] = _no_arguments
    flops: Callable[[Node], float] = _no_flops  # of the whole node
    stores: bool = False
    streaming: Streaming | None = None  # on targets with streaming workers
    ranged: bool = False  # the boxes alone do not say what is to be computed


@cache
def _modules() -> tuple[Any, ...]:
    names = sorted(m.name for m in iter_modules(__path__) if m.name[0] != "_")
    return tuple(import_module(f"{__name__}.{name}") for name in names)


@cache
def registry() -> Mapping[str, Op]:
    """Every operator by name."""
    return {m.OP.name: m.OP for m in _modules() if hasattr(m, "OP")}


@cache
def claims() -> Mapping[str, Claim]:
    """Every claimed call by the name torch gives it, such as `aten.linear.default`."""
    return {name: claim for m in _modules() if hasattr(m, "CLAIMS") for name, claim in m.CLAIMS.items()}


@cache
def patterns() -> tuple[Callable[[Graph], Graph], ...]:
    """Every rewrite that finds an operator spelled out in smaller ones."""
    return tuple(m.PATTERN for m in _modules() if hasattr(m, "PATTERN"))
