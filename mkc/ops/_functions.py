"""The scalar functions of elementwise expressions: what each means in numpy. The page finds them as `fn::<name>`."""

from collections.abc import Callable
from math import erf, sqrt
from typing import Any

import numpy as np

from mkc.ir.dtype import Array, DType
from mkc.ir.expr import Arg, Call, Const, Expr

F = np.float32


_erf = np.vectorize(erf, otypes=[np.float64])


def _rounded(dtype: DType) -> Callable[[Any], Any]:
    return lambda x: dtype.rounded(np.asarray(x))


def _sigmoid(x: Any) -> Any:
    return 1.0 / (1.0 + np.exp(-x))


FUNCTIONS: dict[str, Callable[..., Any]] = {
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "mul": lambda a, b: a * b,
    "div": lambda a, b: np.asarray(a, F) / np.asarray(b, F),
    "floor_div": lambda a, b: a // b,
    "mod": lambda a, b: a % b,
    "neg": lambda a: -a,
    "abs": np.abs,
    "square": lambda a: a * a,
    "pow": lambda a, b: np.power(np.asarray(a, F), np.asarray(b, F)),
    "reciprocal": lambda a: 1.0 / a,
    "sqrt": np.sqrt,
    "rsqrt": lambda a: 1.0 / np.sqrt(a),
    "exp": np.exp,
    "log": np.log,
    "sin": np.sin,
    "cos": np.cos,
    "tanh": np.tanh,
    "erf": _erf,
    "sigmoid": _sigmoid,
    "silu": lambda a: a * _sigmoid(a),
    "relu": lambda a: np.maximum(a, a.dtype.type(0)),
    "gelu": lambda a: 0.5 * a * (1.0 + _erf(a / sqrt(2.0))),
    "gelu_tanh": lambda a: 0.5 * a * (1.0 + np.tanh(sqrt(2 / np.pi) * (a + 0.044715 * a**3))),
    "floor": np.floor,
    "ceil": np.ceil,
    "maximum": np.maximum,
    "minimum": np.minimum,
    "eq": lambda a, b: a == b,
    "ne": lambda a, b: a != b,
    "lt": lambda a, b: a < b,
    "le": lambda a, b: a <= b,
    "gt": lambda a, b: a > b,
    "ge": lambda a, b: a >= b,
    "bit_and": lambda a, b: a & b,
    "bit_or": lambda a, b: a | b,
    "bit_xor": lambda a, b: a ^ b,
    "logical_and": np.logical_and,
    "logical_or": np.logical_or,
    "logical_not": np.logical_not,
    "where": np.where,
    "to_float32": lambda a: np.asarray(a).astype(F),
    "to_bfloat16": _rounded(DType.BF16),
    "to_float16": _rounded(DType.F16),
    "to_int64": lambda a: np.asarray(a).astype(np.int64),
    "to_int32": lambda a: np.asarray(a).astype(np.int32),
    "to_uint8": lambda a: np.asarray(a).astype(np.uint8),
    "to_bool": lambda a: np.asarray(a).astype(np.bool_),
}


def evaluate(expr: Expr, operands: list[Array]) -> Array:
    """The expression over arrays of one shape (or broadcasting ones)."""
    match expr:
        case Arg(index):
            return operands[index]
        case Const(value):
            return np.asarray(value, F) if isinstance(value, float) else np.asarray(value)
        case Call(fn, args):
            with np.errstate(all="ignore"):
                return np.asarray(FUNCTIONS[fn](*(evaluate(arg, operands) for arg in args)))


def cpp(expr: Expr) -> str:
    """The expression as a C++ type: `Call<fn::mul, Arg<0>, Const<2.0f>>`."""
    match expr:
        case Arg(index):
            return f"Arg<{index}>"
        case Const(bool() as value):
            return f"Const<{str(value).lower()}>"
        case Const(int() as value):
            return f"Const<{value}LL>"
        case Const(value):
            return f"Const<{_float(float(value))}>"
        case Call(fn, args):
            return f"Call<{', '.join([f'fn::{fn}', *map(cpp, args)])}>"


def _float(value: float) -> str:
    if np.isnan(value):
        return "kNan"
    with np.errstate(over="ignore"):
        narrow = F(value)
    if np.isinf(narrow):
        return "kInf" if value > 0 else "-kInf"
    return f"{float(narrow)!r}f"
