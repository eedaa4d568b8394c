"""functional: what an exported graph writes becomes values, as PyTorch's own pass would have it, or the graph is left to that."""

from collections.abc import Sequence
from typing import Any
from unittest import mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from laws.test_stream import MODELS
from torch import fx, nn

from mkc.frontend import trace as tracing
from mkc.frontend.decoding import make_state, raise_decoding
from mkc.frontend.functional import functional
from mkc.ops import claims

ROWS = 4  # of every tensor of a drawn program, [ROWS, ROWS]
VIEWS = ("transpose", "select", "reshape", "cast")
STEPS = (*VIEWS, "add", "copy_", "index_copy_")
Step = tuple[str, int, int]


class Program(nn.Module):
    """Steps on two states: each looks at values of before, or writes one."""

    def __init__(self, steps: Sequence[Step]) -> None:
        super().__init__()
        self.steps = steps

    def forward(self, first: torch.Tensor, second: torch.Tensor) -> tuple[torch.Tensor, ...]:
        values = [first, second]
        for name, one, other in self.steps:
            x, y = values[one % len(values)], values[other % len(values)]
            match name:
                case "transpose":
                    values.append(x.transpose(0, 1))
                case "select":
                    values.append(x[one % ROWS].expand(ROWS, ROWS))
                case "reshape":
                    values.append(x.reshape(2, -1).reshape(ROWS, ROWS))
                case "cast":
                    values.append(x.to(torch.float32))
                case "add":
                    values.append(x + y)
                case "copy_":
                    values[one % 2].copy_(y + 1)
                case _:
                    values[one % 2].index_copy_(0, torch.tensor([other % ROWS]), y[:1] * 2)
        return values[-1] + 0, values[len(values) // 2] * 1


def drawn() -> tuple[torch.Tensor, torch.Tensor]:
    first, second = torch.arange(2.0 * ROWS * ROWS).view(2, ROWS, ROWS)
    return first.clone(), second.clone()


@settings(max_examples=40)
@given(st.lists(st.tuples(st.sampled_from(STEPS), st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=8))
def test_a_functional_graph_gives_what_the_program_does(steps: list[Step]) -> None:
    program = torch.export.export(Program(steps), drawn(), strict=False)
    mutated = functional(program.graph, claims().keys())
    assert mutated is not None or has_views_and_writes(steps)
    if mutated is None:
        return
    found, written = run(program.graph_module, mutated, drawn(), tuple(program.constants.values()))
    states = drawn()
    expected = Program(steps)(*states)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(written, states, strict=True))


def has_views_and_writes(steps: list[Step]) -> bool:
    names = {name for name, _, _ in steps}
    return bool(names & set(VIEWS)) and bool(names - {*VIEWS, "add"})


def run(module: fx.GraphModule, mutated: dict[fx.Node, fx.Node], states: Any, constants: Any) -> tuple[Any, list[torch.Tensor]]:
    """Results, and what the two states, the last placeholders, hold in the end; the states given are not written."""
    interpreter = fx.Interpreter(module, garbage_collect_values=False)
    placeholders = module.graph.find_nodes(op="placeholder")
    before = [state.clone() for state in states]
    found = interpreter.run(*constants, *states)
    assert all(torch.equal(a, b) for a, b in zip(before, states, strict=True))
    return found, [interpreter.env[mutated.get(p, p)] for p in placeholders[-2:]]


@pytest.mark.parametrize("late", [True, False])
def test_a_view_from_before_a_write_is_left_to_pytorch_if_it_is_seen_after_it(late: bool) -> None:
    class Late(nn.Module):
        def forward(self, state: torch.Tensor) -> torch.Tensor:
            view = state[1]
            seen = view * 2
            state.copy_(state + 1)
            return view * 2 if late else seen

    state = torch.arange(8.0).view(2, 4)
    assert (functional(torch.export.export(Late(), (state,)).graph, claims().keys()) is None) == late


def test_a_write_through_a_view_is_left_to_pytorch() -> None:
    class Row(nn.Module):
        def forward(self, state: torch.Tensor) -> torch.Tensor:
            state[1].copy_(state[0])
            return state * 2

    program = torch.export.export(Row(), (torch.ones(2, 4),))
    before = str(program.graph)
    assert functional(program.graph, claims().keys()) is None
    assert str(program.graph) == before


@pytest.mark.parametrize(("kind", "batch", "page"), [("qwen3", 1, None), ("gemma2", 3, None), ("glm4", 2, 64), ("gpt2", 1, None)])
def test_a_model_becomes_the_same_graph_either_way(kind: str, batch: int, page: int | None) -> None:
    model = MODELS[kind]()
    state = make_state(model, 64, 4, batch, page)

    found = raise_decoding(model, state, (3,)).graph
    with mock.patch.object(tracing, "functional", return_value=None):
        assert str(found) == str(raise_decoding(model, state, (3,)).graph)


def test_a_model_that_decodes_needs_no_second_trace() -> None:
    model = MODELS["qwen3"]()
    with mock.patch.object(torch.export.ExportedProgram, "run_decompositions", side_effect=AssertionError):
        raise_decoding(model, make_state(model, 64, 4), ())


def test_nobody_writes_the_code_of_a_model_that_is_not_run() -> None:
    """But once, for the program that `torch.export` gives."""
    model = MODELS["qwen3"]()
    with mock.patch.object(fx.Graph, "python_code", autospec=True, side_effect=fx.Graph.python_code) as written:
        raise_decoding(model, make_state(model, 64, 4), ())
    large = [call for call in written.call_args_list if len(call.args[0].nodes) > 20]
    assert len(large) == 1
