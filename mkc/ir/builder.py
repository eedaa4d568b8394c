"""Builds a Graph call by call: what claims use to raise torch's dialect into operators."""

from dataclasses import replace
from itertools import count

import numpy as np

from mkc.errors import UnsupportedError
from mkc.ir.dtype import Array, DType
from mkc.ir.expr import Arg
from mkc.ir.graph import Attr, Graph, Kind, Node, Storage, Tensor, scratch
from mkc.ir.layout import Layout, Shape, contiguous


class Builder:
    """Collects nodes in program order.

    `shape` and `dtype` are those of the result of the call being raised; `last_use` says that no later call looks at
    the memory of its first argument, so that it may be changed in place.
    """

    def __init__(self, name: str = "graph") -> None:
        self.name = name
        self.nodes: list[Node] = []
        self.writers: dict[Storage, list[Node]] = {}  # in program order
        self.constants: dict[str, Array] = {}
        self.inputs: list[Tensor] = []
        self.path = ""
        self.shape: Shape = ()
        self.dtype = DType.F32
        self.last_use = False
        self._numbers = count()

    def input(
        self, name: str, shape: Shape, dtype: DType, kind: Kind = Kind.INPUT, strides: Shape | None = None
    ) -> Tensor:
        """A tensor of the caller's, or a parameter, in a storage of its own; contiguous unless strides are given."""
        layout = contiguous(shape) if strides is None else Layout(shape, strides)
        reach = 1 + sum((n - 1) * s for n, s in zip(layout.shape, layout.strides, strict=True))
        tensor = Tensor(dtype, layout, Storage(name, reach * dtype.itemsize, kind))
        if kind in (Kind.INPUT, Kind.STATE):
            self.inputs.append(tensor)
        return tensor

    def constant(self, values: Array, dtype: DType) -> Tensor:
        """A tensor whose elements are known now."""
        name = f"const{next(self._numbers)}"
        self.constants[name] = np.ascontiguousarray(dtype.encode(values))
        return self.input(name, values.shape, dtype, Kind.CONST)

    def new(self, shape: Shape, dtype: DType, hint: str = "t") -> Tensor:
        """An uninitialised tensor in the arena."""
        if 0 in shape:
            raise UnsupportedError("a tensor without elements")
        return scratch(f"{hint}{next(self._numbers)}", shape, dtype)

    def emit(
        self,
        op: str,
        inputs: tuple[Tensor, ...],
        shape: Shape | None = None,
        dtype: DType | None = None,
        **attrs: Attr,
    ) -> Tensor:
        """Append an operator with one fresh contiguous output, by default of the call's result shape and dtype."""
        out = self.new(self.shape if shape is None else shape, dtype or self.dtype, op)
        self.append(op, inputs, (out,), **attrs)
        return out

    def append(self, op: str, inputs: tuple[Tensor, ...], outputs: tuple[Tensor, ...], **attrs: Attr) -> Node:
        """Append an operator that writes given tensors."""
        node = Node(f"{op}_{len(self.nodes)}", op, inputs, outputs, tuple(attrs.items()), self.path)
        self.nodes.append(node)
        for storage in {tensor.storage for tensor in outputs}:
            self.writers.setdefault(storage, []).append(node)
        return node

    def copy(self, source: Tensor, into: Tensor | None = None) -> Tensor:
        """The elements of `source`, cast if need be, in a contiguous tensor or in the one given."""
        out = into or self.new(source.shape, source.dtype, "copy")
        self.append("elementwise", (source,), (out,), expr=Arg(0))
        return out

    def reshape(self, tensor: Tensor, shape: Shape) -> Tensor:
        """A view where strides allow it, else a copy."""
        layout = tensor.layout.reshape(shape)
        if layout is None:
            return self.reshape(self.copy(tensor), shape)
        return tensor.view(layout)

    def dense(self, tensor: Tensor) -> Tensor:
        """The tensor itself when it is contiguous, else a copy."""
        return tensor if tensor.layout.is_contiguous else self.copy(tensor)

    def finish(self, outputs: tuple[Tensor, ...], loops: bool = False, until: Tensor | None = None) -> Graph:
        """The graph. Every output lands in memory made for the caller."""
        owned = tuple(t if t.storage.kind is Kind.ARENA else self.copy(t) for t in outputs)
        storages = dict.fromkeys(t.storage for t in owned)
        given = {s: replace(s, name=f"out{i}", kind=Kind.OUTPUT) for i, s in enumerate(storages)}

        def moved(tensors: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            return tuple(replace(t, storage=given.get(t.storage, t.storage)) for t in tensors)

        nodes = tuple(replace(n, inputs=moved(n.inputs), outputs=moved(n.outputs)) for n in self.nodes)
        return Graph(nodes, tuple(self.inputs), moved(owned), loops, until, self.name)
