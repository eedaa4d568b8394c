"""Level 1. What is computed: tensors, the storages they lie in, and the operators between them."""

from dataclasses import dataclass, replace
from enum import Enum

from mkc.ir.dtype import DType
from mkc.ir.expr import Expr
from mkc.ir.layout import Layout, Shape, contiguous

Attr = int | float | bool | str | None | Expr | tuple[int, ...] | DType


class Kind(Enum):
    """Whose memory a storage is, and so who may write it."""

    INPUT = "input"  # the caller's, read only
    STATE = "state"  # the caller's, read and written: a KV cache, a position
    PARAM = "param"  # a parameter or buffer of the module, read only
    CONST = "const"  # made by the compiler, read only
    OUTPUT = "output"  # made for each call, written and handed to the caller
    ARENA = "arena"  # scratch between operators, shared by lifetime
    WORDS = "words"  # published: every value carries its use count, written by streams and polled by streams
    PACKED = "packed"  # parameters again, in the order in which workers stream them

    @property
    def is_written(self) -> bool:
        return self in (Kind.STATE, Kind.OUTPUT, Kind.ARENA, Kind.WORDS)

    @property
    def is_ours(self) -> bool:
        """Scratch: the compiler places it in a memory of its own."""
        return self in (Kind.ARENA, Kind.WORDS)


@dataclass(frozen=True, slots=True)
class Storage:
    """A run of bytes with one owner. Names are unique in a graph. What is ours gets a `base`, its place in the arena or the words."""

    name: str
    nbytes: int
    kind: Kind
    base: int | None = None

    @property
    def start(self) -> int:
        """Where it begins in its memory, which is its own unless it lies in the arena."""
        return self.base or 0

    def __str__(self) -> str:
        return self.name if self.base is None else f"{self.name}@{self.base}"


@dataclass(frozen=True, slots=True)
class Tensor:
    """A typed view of a storage."""

    dtype: DType
    layout: Layout
    storage: Storage

    @property
    def shape(self) -> Shape:
        return self.layout.shape

    @property
    def nbytes(self) -> int:
        return self.layout.numel * self.dtype.itemsize

    @property
    def cpp(self) -> str:
        """The type of its view on the page. The offset is in the operand's address, so layers share bodies."""
        extents = ", ".join(map(str, self.shape))
        steps = ", ".join(map(str, self.layout.strides))
        view = "Words" if self.storage.kind is Kind.WORDS else "View"
        return f"{view}<{self.dtype.cpp}, Shape<{extents}>, Stride<{steps}>>"

    def view(self, layout: Layout) -> "Tensor":
        return Tensor(self.dtype, layout, self.storage)

    def __str__(self) -> str:
        return f"{self.storage}:{self.dtype}[{self.layout}]"


def scratch(name: str, shape: Shape, dtype: DType) -> Tensor:
    """A tensor of a storage of its own in the arena."""
    layout = contiguous(shape)
    return Tensor(dtype, layout, Storage(name, layout.numel * dtype.itemsize, Kind.ARENA))


@dataclass(frozen=True, slots=True)
class Node:
    """One operator: what it reads, what it writes, and its constants. `path` is where it stood in the model."""

    name: str
    op: str
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    attrs: tuple[tuple[str, Attr], ...] = ()
    path: str = ""

    def __getitem__(self, key: str) -> Attr:
        for name, value in self.attrs:
            if name == key:
                return value
        raise KeyError(f"{self.name} ({self.op}) has no attribute {key!r}")

    def __contains__(self, key: str) -> bool:
        return any(name == key for name, _ in self.attrs)

    def integer(self, key: str) -> int:
        """An attribute that is one."""
        value = self[key]
        assert isinstance(value, int)
        return value

    def number(self, key: str) -> float:
        """An attribute that is a float."""
        value = self[key]
        assert isinstance(value, float)
        return value

    def with_attrs(self, **changed: Attr) -> "Node":
        """The same with some attributes changed, in the order they were in."""
        return replace(self, attrs=tuple((key, changed.get(key, value)) for key, value in self.attrs))

    @property
    def output(self) -> Tensor:
        """The only output of an operator that has one."""
        (tensor,) = self.outputs
        return tensor

    def __str__(self) -> str:
        attrs = "".join(f", {key}={value}" for key, value in self.attrs)
        outputs = ", ".join(map(str, self.outputs))
        where = f"  # {self.path}" if self.path else ""
        return f"{outputs} = {self.op}({', '.join(map(str, self.inputs))}{attrs}){where}"


@dataclass(frozen=True, slots=True)
class Graph:
    """Operators in program order. `inputs` are the caller's tensors, `outputs` what is handed back.

    With `loops` the graph may run many steps in one launch; `until`, when there is one, is a boolean state: the run
    ends after the step that sets it.
    """

    nodes: tuple[Node, ...]
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    loops: bool = False
    until: Tensor | None = None
    name: str = "graph"

    @property
    def storages(self) -> tuple[Storage, ...]:
        """Every storage, in the order of first use."""
        used = [t.storage for t in self.inputs]
        used += [t.storage for node in self.nodes for t in (*node.inputs, *node.outputs)]
        used += [t.storage for t in self.outputs] + ([self.until.storage] if self.until else [])
        return tuple(dict.fromkeys(used))

    def __str__(self) -> str:
        head = [f"{self.name}({', '.join(map(str, self.inputs))}):"]
        body = [f"  {node}" for node in self.nodes]
        until = [f"  until {self.until}"] if self.until else []
        return "\n".join([*head, *body, *until, f"  return {', '.join(map(str, self.outputs))}"])
