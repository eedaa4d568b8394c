"""Values of ours <-> bytes: frozen dataclasses and enums of `mkc.ir`, tuples, numbers, texts and arrays, and nothing else.

Whatever bytes say, reading them makes such values or raises ValueError: no code can be named in them.
"""

import json
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from enum import Enum
from functools import cache
from importlib import import_module
from pkgutil import iter_modules
from typing import Any

import numpy as np

from mkc import ir

_LENGTH = 8  # bytes that say how long the table is, before it; arrays follow
_PLAIN = (type(None), bool, int, float, str)


def dumps(value: Any) -> bytes:
    """The value as a table of entries, each naming those before it, and the bytes of arrays. Raises TypeError for anything else."""
    writer = _Writer()
    root = writer.token(value)
    table = json.dumps([writer.entries, root], separators=(",", ":")).encode()
    return b"".join([len(table).to_bytes(_LENGTH, "little"), table, *writer.arrays])


def loads(data: bytes) -> Any:
    """What `dumps` was given. Raises ValueError."""
    try:
        end = _LENGTH + int.from_bytes(data[:_LENGTH], "little")
        entries, root = json.loads(data[_LENGTH:end])
        return _Reader(entries, memoryview(data)[end:]).value(root)
    except (ArithmeticError, AssertionError, AttributeError, LookupError, TypeError) as error:
        raise ValueError(f"these bytes hold no value of mkc: {error!r}") from error


class _Writer:
    """A token is a plain value itself, or a list of the one number of its entry. What was met before has one already."""

    def __init__(self) -> None:
        self.entries: list[list[Any]] = []
        self.arrays: list[bytes] = []
        self.offset = 0
        self.seen: dict[int, tuple[Any, list[int]]] = {}  # by identity; the value beside it stays alive
        self.equal: dict[str, list[int]] = {}

    def token(self, value: Any) -> Any:
        if type(value) in _PLAIN:
            return value
        if id(value) not in self.seen:
            self.seen[id(value)] = value, self._entered(list(self._entry(value)))
        return self.seen[id(value)][1]

    def _entered(self, entry: list[Any]) -> list[int]:
        """The number of an entry: a new one, unless its like is there."""
        key = repr(entry)
        if key not in self.equal:
            self.equal[key] = [len(self.entries)]
            self.entries.append(entry)
        return self.equal[key]

    def _entry(self, value: Any) -> Iterator[Any]:
        kind = type(value)
        if kind is tuple:
            yield from ("tuple", *map(self.token, value))
        elif kind is np.ndarray:
            yield from ("array", np.lib.format.dtype_to_descr(value.dtype), list(value.shape), self._laid(value))
        elif isinstance(value, Enum):
            yield from (_name(kind), value.name)
        elif is_dataclass(value):
            yield from (_name(kind), *(self.token(getattr(value, field.name)) for field in fields(value)))
        else:
            raise TypeError(f"a {kind.__name__} cannot be stored")

    def _laid(self, array: np.ndarray[Any, Any]) -> list[int]:
        """Where its bytes are."""
        self.arrays.append(np.ascontiguousarray(array).tobytes())
        start, self.offset = self.offset, self.offset + len(self.arrays[-1])
        return [start, self.offset]


class _Reader:
    def __init__(self, entries: list[list[Any]], arrays: memoryview) -> None:
        self.arrays = arrays
        self.values: list[Any] = []
        for entry in entries:
            self.values.append(self._made(*entry))

    def value(self, token: Any) -> Any:
        return self.values[token[0]] if type(token) is list else token

    def _made(self, kind: str, *given: Any) -> Any:
        match kind:
            case "tuple":
                return tuple(map(self.value, given))
            case "array":
                descr, shape, (start, end) = given
                dtype = np.lib.format.descr_to_dtype(_as_descr(descr))
                assert not dtype.hasobject
                return np.frombuffer(self.arrays[start:end], dtype).reshape(shape).copy()
        known = _classes()[kind]
        return known[given[0]] if issubclass(known, Enum) else known(*map(self.value, given))


def _as_descr(given: Any) -> Any:
    """A description of a dtype as NumPy has it: fields and shapes are tuples, which JSON has not."""
    if isinstance(given, str):
        return given
    return [(name, _as_descr(kind), *(tuple(shape) for shape in shapes)) for name, kind, *shapes in given]


def _name(kind: type) -> str:
    name = f"{kind.__module__}.{kind.__qualname__}"
    if name not in _classes():
        raise TypeError(f"a {name} cannot be stored")
    return name


@cache
def _classes() -> dict[str, type]:
    """Dataclasses and enums of the languages."""
    modules = [import_module(f"{ir.__name__}.{found.name}") for found in iter_modules(ir.__path__)]
    classes = [c for m in modules for c in vars(m).values() if isinstance(c, type) and c.__module__ == m.__name__]
    return {f"{c.__module__}.{c.__qualname__}": c for c in classes if is_dataclass(c) or issubclass(c, Enum)}
