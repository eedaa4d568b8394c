"""Choices: whatever is chosen, the plan is sound and means the same; what no plan can have is refused."""

from collections.abc import Callable
from dataclasses import replace
from random import Random
from typing import Any
from unittest import mock

import pytest
import torch
from laws.test_stream import MODELS, assert_as_near_to_float64, decoding, plain
from oracle import interpreted, machine, raised
from random_graphs.models import RandomModel
from torch import nn

import mkc
from mkc.compiler import compile_graphs
from mkc.errors import OptionError
from mkc.frontend.executable import Executable
from mkc.ir.choices import COARSEST, COUNTS, EDGES, FINEST, UNCHOSEN, Choices
from mkc.ir.cost import Costs, worthwhile_parts
from mkc.ir.graph import Kind
from mkc.passes.stream import stream
from mkc.passes.tile import tile
from mkc.targets import cpu, cuda

SIGNALLED = (*((kind,) for kind in EDGES), EDGES)


# ---- the same results


@pytest.mark.parametrize("seed", range(16))
def test_operators_give_the_same_bits_however_they_are_cut(seed: int) -> None:
    rng, model = Random(seed), RandomModel(seed)
    graph, target = raised(model, *model.example_inputs), machine(rng.randint(1, 5), 1000.0)
    choices = Choices(grain=2 ** rng.uniform(-10, 10), tasks_each=rng.randint(1, COUNTS["tasks_each"]))
    runs = [
        interpreted([graph], replace(target, choices=chosen), "static", rng)(model.example_inputs)[0]
        for chosen in (UNCHOSEN, choices)
    ]
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


@pytest.mark.parametrize("choices", [Choices(grain=FINEST), Choices(grain=COARSEST), Choices(grain=FINEST, tasks_each=3)])
def test_kernels_give_the_same_bits_however_they_are_cut(choices: Choices) -> None:
    model = nn.Sequential(nn.Linear(96, 80), nn.GELU(), nn.LayerNorm(80), nn.Linear(80, 33), nn.Softmax(-1)).eval()
    x = torch.randn(5, 96)
    with torch.no_grad():
        expected = mkc.compile(model, x, workers=2)(x)
        assert torch.equal(mkc.compile(model, x, workers=2, choices=choices)(x), expected)
        torch.testing.assert_close(expected, model(x))


@pytest.mark.parametrize(
    ("kind", "starts", "signalled"),
    [
        ("qwen3", (62,), EDGES),
        ("qwen3", (62,), ("rows",)),
        ("olmo2", (130,), EDGES),
        ("olmo2", (130,), ("norms",)),
        ("qwen3", (62, 0, 130), EDGES),
    ],
)
def test_edges_of_streams_may_be_signalled_or_published(kind: str, starts: tuple[int, ...], signalled: tuple[str, ...]) -> None:
    assert_as_near_to_float64(kind, 5, *starts, choices=Choices(signalled=signalled))


@pytest.mark.parametrize(
    ("starts", "choices"),
    [
        ((130,), Choices(splits=1)),
        ((130,), Choices(splits=2, signalled=("heads",))),
        ((130,), Choices(merge_from=2)),
        ((63, 130), Choices(one_in=16)),
    ],
)
def test_attention_of_any_splits_is_as_near_to_float64(starts: tuple[int, ...], choices: Choices) -> None:
    assert_as_near_to_float64("qwen3", 16, *starts, choices=choices)


# ---- sound plans


@pytest.mark.parametrize("signalled", SIGNALLED)
@pytest.mark.parametrize(
    ("kind", "workers", "batch"), [("qwen3, deep", 5, 1), ("gemma2", 16, 1), ("olmo2", 132, 1), ("gpt2", 16, 1), ("llama", 16, 3)]
)
def test_the_checker_accepts_every_choice(kind: str, workers: int, batch: int, signalled: tuple[str, ...]) -> None:
    random = Random(repr((kind, workers, signalled)))
    choices = Choices(signalled=signalled, splits=random.choice((1, 2, 16)), merge_from=random.choice((2, 33)), one_in=1)
    graph = decoding(MODELS[kind](), *[0] * batch)[1].graph
    with mock.patch("mkc.compiler.render"):
        made = compile_graphs([graph], replace(cuda.target(arch="sm_90a", workers=workers), choices=choices))  # raises what is unsound
    assert made.program.streams is not None


def published(kind: str, choices: Choices, batch: int = 1) -> set[str]:
    """Names of what is published."""
    target = replace(machine(16, streams=True), choices=choices)
    return {storage.name for storage in stream(plain(kind, batch), target).storages if storage.kind is Kind.WORDS}


@pytest.mark.parametrize("kind", EDGES)
def test_each_kind_of_edge_is_chosen_by_itself(kind: str) -> None:
    assert published("olmo2", Choices(signalled=(kind,))) < published("olmo2", UNCHOSEN)
    assert published("olmo2", Choices(signalled=EDGES)) < published("olmo2", Choices(signalled=(kind,)))


def test_parts_and_the_heads_of_a_batch_stay_published() -> None:
    assert published("qwen3", Choices(signalled=EDGES))
    assert published("qwen3", Choices(signalled=("heads",)), 3) == published("qwen3", UNCHOSEN, 3)


# ---- what they decide


def test_a_coarser_grain_or_fewer_splits_make_fewer_tasks() -> None:
    def tasks(streams: bool, choices: Choices) -> int:
        target = replace(machine(16, streams=streams), choices=choices)
        return len(tile(stream(plain("qwen3"), target) if streams else plain("qwen3"), target).tasks)

    assert tasks(False, Choices(grain=64.0)) < tasks(False, UNCHOSEN) < tasks(False, Choices(tasks_each=2))
    assert tasks(True, Choices(splits=1)) < tasks(True, UNCHOSEN)


def test_parts_of_one_sequence_are_merged_once_where_there_are_so_many() -> None:
    def ops(choices: Choices) -> list[str]:
        return [node.op for node in stream(plain("qwen3"), replace(machine(16, streams=True), choices=choices)).nodes]

    assert "stream_merge" not in ops(UNCHOSEN)
    assert "stream_merge" not in ops(Choices(splits=2, merge_from=3))
    assert ops(Choices(splits=2, merge_from=2)).count("stream_merge") == ops(UNCHOSEN).count("decode_attention")


def test_a_task_is_worth_its_grain() -> None:
    target = machine(64)  # handing over costs 2 ns, and a worker reads 20 bytes in one
    assert worthwhile_parts(target, 400, 0) == 10
    assert worthwhile_parts(replace(target, choices=Choices(grain=2.0)), 400, 0) == 5
    assert worthwhile_parts(replace(target, choices=Choices(tasks_each=2)), 4e6, 0) == 128


def test_a_worker_reads_its_share_of_what_all_read_and_no_more_than_it_can_alone() -> None:
    costs = Costs(alone=20.0, together=60.0, task_ns=50.0, event_ns=300.0)
    rates = [costs.on(machine(workers)).bytes_per_ns for workers in (1, 3, 6)]
    assert rates == [20.0, 20.0, 10.0]
    assert (costs.on(machine(1)).task_ns, costs.on(machine(1)).event_ns) == (50.0, 300.0)


# ---- what there is


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (dict(splits=0), "splits=0): it must be a whole number from 1 to 32"),
        (dict(splits=33), "from 1 to 32"),
        (dict(splits=True), "from 1 to 32"),
        (dict(merge_from=34), "from 1 to 33"),
        (dict(one_in=17), "one_in=17"),
        (dict(tasks_each=1.5), "tasks_each=1.5"),
        (dict(grain=0.0), "it must be a number from 0.000976562 to 1024"),
        (dict(grain=float("nan")), "grain=nan"),
        (dict(grain="fine"), "grain='fine'"),
        (dict(signalled=("row",)), "some of rows, heads, norms"),
        (dict(signalled="rows"), "it must be a tuple"),
        (dict(signalled=([],)), "some of rows, heads, norms"),
    ],
)
def test_choices_out_of_range_are_refused_in_a_sentence(given: dict[str, Any], says: str) -> None:
    with pytest.raises(OptionError) as refusal:
        Choices(**given)
    assert says in str(refusal.value)


def test_choices_say_what_is_not_the_default() -> None:
    assert str(UNCHOSEN) == ""
    assert str(Choices(splits=4, signalled=("rows", "norms"), grain=0.25)) == "splits 4, signalled rows and norms, grain 0.25"
    target = cpu.target(2)
    assert str(replace(target, choices=Choices(tasks_each=2))) == f"{target}, tasks_each 2"


def test_a_target_takes_the_choices_that_it_is_compiled_with() -> None:
    model, x = nn.Linear(4, 4).eval(), torch.randn(1, 4)
    for target in ("cpu", cpu.target(2)):
        made = mkc.compile(model, x, target=target, choices=Choices(grain=2.0)).compilation
        assert made.target.choices == Choices(grain=2.0)
    with pytest.raises(OptionError, match=r"choices='fast' must be mkc\.Choices"):
        mkc.compile(model, x, choices="fast")


def test_plans_that_differ_in_numbers_alone_share_a_library(monkeypatch: pytest.MonkeyPatch) -> None:
    graph = raised(nn.Sequential(nn.Linear(96, 80), nn.ReLU(), nn.Linear(80, 3)).eval(), torch.randn(5, 96))
    fine, coarse = (Executable([graph], replace(machine(2), choices=Choices(grain=g)), torch.device("cpu")) for g in (1.0, COARSEST))
    assert len(fine.compilation.program.tasks) > len(coarse.compilation.program.tasks)
    fine.build()

    def never(*_: object) -> Callable[..., Any]:
        raise AssertionError("it was built already")

    monkeypatch.setattr(cpu, "_compile", never)
    coarse.build()
