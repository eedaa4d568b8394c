"""What operators that store through an epilogue share: the maps of its operands, its meaning, its C++ type."""

from collections.abc import Sequence

import numpy as np

from mkc.ir.dtype import Array
from mkc.ir.expr import Arg, Call, Const, Expr
from mkc.ir.graph import Node, Tensor
from mkc.ir.tiling import Split, TileMap
from mkc.ops._functions import cpp, evaluate


def epilogue(node: Node) -> Expr:
    """The node's epilogue; operand 0 is the operator's own result."""
    if "epilogue" not in node:
        return Arg(0)
    expr = node["epilogue"]
    assert isinstance(expr, Arg | Call | Const)
    return expr


def along_output(extras: Sequence[Tensor], dims: tuple[Split | None, ...]) -> tuple[TileMap, ...]:
    """imaps of the further operands, which all have the output's shape."""
    return tuple(TileMap(t, dims) for t in extras)


def finish(node: Node, result: Array, extras: Sequence[Array]) -> Array:
    """The epilogue over the operator's result."""
    return np.broadcast_to(evaluate(epilogue(node), [result, *extras]), result.shape)


def stored(node: Node) -> tuple[str, ...]:
    """The epilogue as the body's first template argument."""
    return (cpp(epilogue(node)),)
