"""choose: an argmax of a streamed row asks the shares of the stream for their best, and answers as torch does."""

from random import Random
from unittest import mock

import pytest
import torch
from oracle import interpreted, machine, raised
from torch import nn

from mkc.frontend.executable import Executable
from mkc.ir.graph import Graph, Kind
from mkc.ops._streaming import fragments
from mkc.passes.fuse import fuse
from mkc.passes.stream import stream

DEPTH = 64


class Choice(nn.Module):
    """Where the best of n products stands."""

    def __init__(self, weight: torch.Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight.to(torch.bfloat16), requires_grad=False)

    def row(self, x: torch.Tensor) -> torch.Tensor:
        return x @ self.weight.T

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.row(x).argmax(-1)


class Told(Choice):
    """The row is handed back too."""

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        y = self.row(x)
        return y, y.argmax(-1)


class Worst(Choice):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.row(x).argmin(-1)


class Halves(Choice):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.row(x).view(2, -1).argmax(-1)


class Shifted(Choice):
    """The row passes through an epilogue with an operand of its own, in shares too."""

    def row(self, x: torch.Tensor) -> torch.Tensor:
        return torch.tanh(x @ self.weight.T) + self.weight[:, 0]


class Given(Choice):
    """The place, unless one is given."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found, given = self.row(x).argmax(-1), x[:, 0].to(torch.int64)
        return torch.where(given < 2, found, given) + 3


def streamed(model: nn.Module, workers: int = 5, depth: int = DEPTH) -> Graph:
    return stream(fuse(raised(model, row(depth)).graph), machine(workers, streams=True))


def row(depth: int = DEPTH) -> torch.Tensor:
    """Ones, so that a product is the sum of its weights."""
    return torch.ones(1, depth, dtype=torch.bfloat16)


def answer(model: nn.Module, workers: int, x: torch.Tensor, streams: bool = True) -> int:
    with mock.patch("mkc.compiler.render"):  # the interpreter needs no page
        run: Executable = interpreted([raised(model, x)], machine(workers, streams=streams), order=Random(workers))
    ((place,),) = run([x])
    return int(place)


def weights(n: int) -> torch.Tensor:
    return torch.randn(n, DEPTH, generator=torch.Generator().manual_seed(n))


@pytest.mark.parametrize("kind", [Choice, Shifted])
@pytest.mark.parametrize(("n", "workers"), [(8, 5), (100, 5), (100, 132), (4100, 7), (9000, 132)])
def test_shares_of_any_size_find_the_best(kind: type[Choice], n: int, workers: int) -> None:
    model = kind(weights(n))
    assert "stream_argmax" in [node.op for node in streamed(model, workers).nodes]
    assert answer(model, workers, row()) == answer(model, workers, row(), streams=False)


@pytest.mark.parametrize(("n", "workers"), [(100, 5), (9000, 132)])
def test_each_of_several_rows_finds_its_own_best(n: int, workers: int) -> None:
    model = Choice(weights(n))
    x = torch.randn(3, DEPTH, generator=torch.Generator().manual_seed(1)).to(torch.bfloat16)
    assert "stream_argmax" in [node.op for node in stream(fuse(raised(model, x).graph), machine(workers, streams=True)).nodes]
    with mock.patch("mkc.compiler.render"):
        run: Executable = interpreted([raised(model, x)], machine(workers, streams=True), order=Random(workers))
    (places,) = run([x])
    assert torch.equal(places.flatten(), model(x))


@pytest.mark.parametrize("rows", [1, 3])
def test_what_is_done_to_the_place_is_done_by_who_finds_it(rows: int) -> None:
    model = Given(weights(100))
    x = torch.ones(rows, DEPTH, dtype=torch.bfloat16)
    x[rows // 2, 0] = rows  # of several rows the middle one is given its place
    graph = stream(fuse(raised(model, x).graph), machine(5, streams=True))
    assert graph.nodes[-1].op == "stream_argmax"
    with mock.patch("mkc.compiler.render"):
        run: Executable = interpreted([raised(model, x)], machine(5, streams=True), order=Random(rows))
    (places,) = run([x])
    assert places.tolist() == model(x).tolist()


@pytest.mark.parametrize("places", [(3, 4), (90, 97), (0, 99), (5, 50)])
@pytest.mark.parametrize("best", [torch.nan, torch.inf, 100.0, 0.0])
def test_the_first_of_equals_wins_in_a_share_and_among_shares(places: tuple[int, int], best: float) -> None:
    weight = -weights(100).abs()
    weight[list(places)] = best
    assert answer(Choice(weight), 5, row()) == places[0] == int(Choice(weight)(row()))


def test_nan_is_better_than_infinity() -> None:
    weight = weights(100)
    weight[10], weight[60] = torch.inf, torch.nan
    assert answer(Choice(weight), 5, row()) == 60


def test_a_row_of_its_worst_has_its_first_place() -> None:
    assert answer(Choice(torch.full((100, DEPTH), -torch.inf)), 5, row()) == 0


def test_zeros_of_either_sign_are_equal() -> None:
    weight = -weights(100).abs()
    weight[20], weight[70] = -0.0, 0.0
    assert answer(Choice(weight), 5, row()) == 20


def test_values_are_compared_as_they_would_be_stored() -> None:
    weight = torch.zeros(16, DEPTH)
    weight[4:, 0] = 1
    weight[9, 1] = 2**-10  # lost when the sum becomes bfloat16
    assert answer(Choice(weight), 5, row()) == 4


@pytest.mark.parametrize("kind", [Told, Worst, Halves])
def test_other_questions_need_the_row(kind: type[Choice]) -> None:
    assert "stream_argmax" not in [node.op for node in streamed(kind(weights(8192))).nodes]


@pytest.mark.parametrize(("n", "entries"), [(151936, 132), (128256, 132), (8, 1), (1064, 67)])
def test_equal_shares_keep_the_longest_as_short_as_it_was(n: int, entries: int) -> None:
    """Of a depth that all compute warps share."""
    told, asked = streamed(Choice(torch.empty(n, 256)), 132, 256).nodes
    (entry,) = told.outputs
    assert (entry.shape, entry.storage.kind) == ((entries, 2), Kind.WORDS)
    assert asked.inputs == (entry,)
    assert told["best"] == 8 * -(-n // (8 * 132))


@pytest.mark.parametrize("n", [151936, 128256, 8, 1064])
def test_equal_shares_of_an_odd_depth_are_of_whole_turns(n: int) -> None:
    """As many tiles pass side by side as are read in no more fragments of the longest share than one after another."""
    told, _ = streamed(Choice(torch.empty(n, DEPTH)), 132).nodes
    beside, tiles = told.integer("abreast"), -(-n // 8)
    assert told["best"] == 8 * beside * -(-tiles // (beside * 132))
    assert told.integer("best") // (8 * beside) * fragments(DEPTH, beside) <= -(-tiles // 132) * fragments(DEPTH, 1)


def test_what_only_talks_has_no_place_among_the_streams() -> None:
    with mock.patch("mkc.compiler.render"):
        program = interpreted([raised(Choice(weights(100)), row())], machine(5, streams=True)).compilation.program
    talks = next(i for i, body in enumerate(program.bodies) if body.header == "stream_argmax")
    assert program.streams is not None
    assert talks in program.tasks["body"]
    assert talks not in program.streams.records["body"]
