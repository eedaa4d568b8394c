"""Bytes, floors and what is said of them."""

import pytest
import torch
from torch import nn

import mkc
from mkc.compiler import Compilation, compile_graphs
from mkc.errors import InputError, ModelError, OptionError
from mkc.explain import explain
from mkc.inspect.account import Explanation
from mkc.ir.builder import Builder
from mkc.ir.dtype import DType
from mkc.ir.expr import Arg
from mkc.ir.graph import Graph, Kind
from mkc.ir.target import Target
from mkc.ops.linear import product
from mkc.targets import cuda

TARGET = Target("cpu", "x86_64", 2, 1, 32 * 1024, 20.0, 20.0, 80.0, 250.0)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lift = nn.Linear(8, 16)
        self.drop = nn.Linear(16, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.drop(torch.relu(self.lift(x)))


class Cut(Net):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.drop(torch.special.i0(self.lift(x)))


def tied() -> Graph:
    """A table of 1,000 rows looked up once, and then multiplied by."""
    b = Builder("tied")
    table = b.input("table", (1000, 16), DType.F32, Kind.PARAM)
    ids = b.input("ids", (1,), DType.I64)
    line = ids.view(ids.layout.reshape((1, 1, 1)).expand((1, 1, 16)))
    row = b.emit("gather", (b.reshape(table, (1, 1000, 16)), line), (1, 1, 16), DType.F32, epilogue=Arg(0))
    b.dtype = DType.F32
    return b.finish((row, product(b, b.reshape(row, (1, 16)), table)))


def test_weights_and_floor_are_what_the_shapes_say(mlp: Compilation) -> None:
    ((section,),) = Explanation.of([mlp]).kernels
    assert section.weight_bytes == 2 * 96 * 96 * 4
    assert section.state_bytes == 2 * 3 * 96 * 4
    assert section.floor_ns == (section.weight_bytes + section.state_bytes) / (2 * 20.0)
    assert section.floor_ns < section.predicted_ns


def test_operators_and_tasks_are_counted(mlp: Compilation) -> None:
    ((section,),) = Explanation.of([mlp]).kernels
    assert (section.operators, section.tasks) == (len(mlp.sections[0].placed.nodes), len(mlp.program.tasks))
    assert section.events == mlp.program.num_events


def test_a_table_that_is_looked_up_counts_for_the_rows_that_are_read() -> None:
    graph = tied()
    lookup = Graph(graph.nodes[:1], graph.inputs, graph.outputs[:1], name="lookup")
    ((section,),) = Explanation.of([compile_graphs([lookup], TARGET)]).kernels
    assert section.weight_bytes == 16 * 4


def test_a_weight_that_is_read_twice_counts_once() -> None:
    ((section,),) = Explanation.of([compile_graphs([tied()], TARGET)]).kernels
    assert section.weight_bytes == 1000 * 16 * 4


def test_a_model_is_explained() -> None:
    found = explain(Net().eval(), torch.zeros(2, 8), workers=2)
    text = str(found)
    assert text.startswith("1 kernel for cpu")
    assert "nothing runs in PyTorch" in text
    assert found.kernels[0][0].weight_bytes == sum(p.nbytes for p in Net().parameters())


def test_what_stays_in_pytorch_is_named_with_the_reason() -> None:
    found = explain(Cut().eval(), torch.zeros(2, 8))
    assert len(found.kernels) == 2
    assert any("no operator claims torch.special_i0" in fallback for fallback in found.fallbacks)
    assert "in PyTorch:" in str(found)


def test_a_model_of_which_nothing_compiles_is_explained_too() -> None:
    assert str(explain(lambda x: torch.special.i0(x), torch.zeros(3))).startswith("nothing was compiled")


def test_a_machine_that_is_not_here_is_planned_for() -> None:
    found = explain(Net().eval(), torch.zeros(2, 8), target=cuda.target(arch="sm_90a"))
    assert str(found.target).startswith("cuda sm_90a, 132 workers")


def test_what_is_compiled_already_needs_no_inputs() -> None:
    compiled = mkc.compile(Net().eval(), torch.zeros(2, 8))
    assert str(explain(compiled)) == str(explain(compiled.model, torch.zeros(2, 8)))


def test_inputs_and_options_are_checked() -> None:
    with pytest.raises(InputError, match="needs example_inputs"):
        explain(Net().eval())
    with pytest.raises(ModelError, match="before looking at it"):
        explain(mkc.compile(Net().eval()))
    with pytest.raises(OptionError, match="unknown option 'speed'"):
        explain(Net().eval(), torch.zeros(2, 8), speed=1)
