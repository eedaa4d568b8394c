"""Element types: their width, their name in C++, and how numpy holds them."""

from enum import Enum
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


class DType(Enum):
    """An element type. The value is the name torch and numpy know it by."""

    F32 = "float32"
    BF16 = "bfloat16"
    F16 = "float16"
    I64 = "int64"
    I32 = "int32"
    U8 = "uint8"
    BOOL = "bool"

    @property
    def itemsize(self) -> int:
        """Width in bytes."""
        return _ITEMSIZE[self]

    @property
    def cpp(self) -> str:
        """The type's name on the page."""
        return _CPP[self]

    @property
    def is_float(self) -> bool:
        return self in (DType.F32, DType.BF16, DType.F16)

    @property
    def bits(self) -> np.dtype[np.generic]:
        """The numpy dtype of the raw memory; bfloat16, which numpy lacks, is held as uint16."""
        return np.dtype(np.uint16 if self is DType.BF16 else self.value)

    def decode(self, raw: Array) -> Array:
        """Raw memory -> values: floats widen to float32, everything else stays as it is."""
        if self is DType.BF16:
            return (raw.astype(np.uint32) << 16).view(np.float32)
        return raw.astype(np.float32) if self is DType.F16 else raw

    def encode(self, values: Array) -> Array:
        """Values -> raw memory, rounded to nearest even."""
        if self is not DType.BF16:
            with np.errstate(over="ignore", invalid="ignore"):
                return values.astype(self.bits)
        wide = np.ascontiguousarray(values, np.float32)
        bits = wide.view(np.uint32)
        rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
        return np.where(np.isnan(wide), np.uint32(0x7FC0), rounded).astype(np.uint16)

    def rounded(self, values: Array) -> Array:
        """What is read back of values that were stored."""
        return self.decode(self.encode(values))

    def __str__(self) -> str:
        return self.value


_ITEMSIZE = {
    DType.F32: 4, DType.BF16: 2, DType.F16: 2, DType.I64: 8, DType.I32: 4, DType.U8: 1, DType.BOOL: 1,
}  # fmt: skip
_CPP = {
    DType.F32: "float", DType.BF16: "bf16", DType.F16: "f16", DType.I64: "int64", DType.I32: "int32",
    DType.U8: "uint8", DType.BOOL: "bool",
}  # fmt: skip
