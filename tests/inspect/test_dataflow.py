"""What networkx sees of the operators."""

from mkc.inspect.dataflow import Dataflow
from mkc.ir.builder import Builder
from mkc.ir.dtype import DType
from mkc.ir.expr import Arg, Call
from mkc.ir.graph import Graph, Kind, Node, Storage, Tensor
from mkc.ir.layout import contiguous

STORAGE = Storage("u", 16, Kind.ARENA)
ALL = Tensor(DType.F32, contiguous((4,)), STORAGE)
HALVES = [ALL.view(ALL.layout.slice(0, lo, lo + 2)) for lo in (0, 2)]


def edges(*nodes: Node) -> list[tuple[str, str]]:
    return list(Dataflow.of(Graph(nodes, (), ())).to_networkx().edges())


def writes(name: str, tensor: Tensor) -> Node:
    return Node(name, "fake", (), (tensor,))


READER = Node("reader", "fake", (ALL, ALL), ())


def test_tensors_are_edges_between_operators() -> None:
    b = Builder("square")
    x = b.input("x", (4, 4), DType.F32)
    y = b.emit("elementwise", (x,), (4, 4), expr=Call("exp", (Arg(0),)))
    z = b.emit("elementwise", (y, y), (4, 4), expr=Call("mul", (Arg(0), Arg(1))))
    graph = b.finish((z,))
    first, second = (node.name for node in graph.nodes)
    assert [*Dataflow.of(graph).to_networkx().edges(data=True)] == [(first, second, {"tensor": str(y), "nbytes": 64})]


def test_a_tensor_made_in_parts_comes_from_each_of_their_writers() -> None:
    assert edges(writes("a", HALVES[0]), writes("b", HALVES[1]), READER) == [("a", "reader"), ("b", "reader")]


def test_what_is_overwritten_comes_from_its_last_writer() -> None:
    assert edges(writes("a", HALVES[0]), writes("b", ALL), READER) == [("b", "reader")]


def test_a_part_that_nobody_reads_makes_no_edge() -> None:
    assert edges(writes("a", HALVES[0]), Node("reader", "fake", (HALVES[1],), ())) == []
