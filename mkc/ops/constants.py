"""Tensors whose elements are known when the model is compiled: ranges, fills, scalars."""

from collections.abc import Callable, Sequence

import numpy as np

from mkc.ir.builder import Builder
from mkc.ir.graph import Tensor
from mkc.ops.elementwise import Scalar


def _fill(b: Builder, value: Scalar) -> Tensor:
    scalar = b.constant(np.full((), value), b.dtype)
    return scalar.view(scalar.layout.expand(b.shape))


def _arange(b: Builder, *bounds: Scalar, **_: object) -> Tensor:
    start, stop, step = {1: (0, *bounds, 1), 2: (*bounds, 1), 3: bounds}[len(bounds)]
    return b.constant(np.arange(start, stop, step), b.dtype)


def _full(b: Builder, shape: Sequence[int], value: Scalar, **_: object) -> Tensor:
    return _fill(b, value)


CLAIMS: dict[str, Callable[..., object]] = {
    **{f"aten.arange.{kind}": _arange for kind in ("default", "start", "start_step")},
    "aten.full.default": _full,
    "aten.full_like.default": lambda b, x, value, **_: _fill(b, value),
    "aten.scalar_tensor.default": lambda b, value, **_: _fill(b, value),
    **{f"aten.{n}.default": lambda b, *_, **__: _fill(b, 0) for n in ("zeros", "zeros_like")},
    **{f"aten.{n}.default": lambda b, *_, **__: _fill(b, 1) for n in ("ones", "ones_like")},
    "aten.new_zeros.default": lambda b, *_, **__: _fill(b, 0),
    "aten.new_ones.default": lambda b, *_, **__: _fill(b, 1),
}
