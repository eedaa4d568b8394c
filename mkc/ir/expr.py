"""Elementwise expressions: trees of functions over tile elements, the same on the page, in the interpreter and in text."""

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Arg:
    """The element of operand `index`."""

    index: int

    def __str__(self) -> str:
        return f"%{self.index}"


@dataclass(frozen=True, slots=True)
class Const:
    """A scalar known when the model is compiled."""

    value: float | int | bool

    def __str__(self) -> str:
        return repr(self.value)


@dataclass(frozen=True, slots=True)
class Call:
    """A function of the table in `mkc.ops.functions` applied to expressions."""

    fn: str
    args: "tuple[Expr, ...]"

    def __str__(self) -> str:
        return f"{self.fn}({', '.join(map(str, self.args))})"


Expr = Arg | Const | Call


def substitute(expr: Expr, replace: Callable[[Arg], Expr]) -> Expr:
    """The expression with every operand replaced."""
    match expr:
        case Arg():
            return replace(expr)
        case Const():
            return expr
        case Call(fn, args):
            return Call(fn, tuple(substitute(arg, replace) for arg in args))


def size(expr: Expr) -> int:
    """How many function calls the expression makes."""
    return 1 + sum(map(size, expr.args)) if isinstance(expr, Call) else 0
