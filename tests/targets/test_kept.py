"""What was measured on a machine: kept and found again, ignored when damaged, out of range or turned off, and used by plans."""

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from oracle import machine, raised
from torch import nn

import mkc
from mkc import cache, targets
from mkc.frontend.module import options, target_for
from mkc.ir.choices import UNCHOSEN, Choices
from mkc.ir.cost import Costs
from mkc.ir.graph import Graph
from mkc.ir.target import Target
from mkc.targets import cpu, kept

COSTS = Costs(alone=20.0, together=30.0, task_ns=50.0, event_ns=300.0)
FOUND = Choices(grain=4.0, signalled=("heads",))
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache of its own, in which what is kept counts."""
    monkeypatch.setenv("MKC_CACHE_DIR", str(tmp_path / "kernels"))
    monkeypatch.setenv("MKC_TUNED", "1")


class Net(nn.Module):
    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(64, width), nn.Linear(width, 64)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(torch.relu(self.first(x)))


def graph(width: int = 64) -> Graph:
    return raised(Net(width).eval(), torch.randn(1, 64)).graph


def here(**changes: Any) -> Target:
    return replace(cpu.target(2), machine="a machine", **changes)


# ---- kept and found


def test_costs_are_kept_for_machines_of_a_name() -> None:
    assert kept.costs("a machine") is None
    kept.keep_costs("a machine", COSTS)
    assert kept.costs("a machine") == COSTS
    assert kept.costs("another") is None


def test_choices_come_back_with_the_costs_that_they_were_measured_with() -> None:
    assert kept.chosen([graph()], here(), "static") is None
    found = here(choices=FOUND, task_ns=7.0)
    kept.keep([graph()], found, "static")
    assert kept.chosen([graph()], here(event_ns=1e6, task_ns=1e6), "static") == replace(found, event_ns=found.event_ns)


@pytest.mark.parametrize(
    "other",
    [
        lambda: ([graph(80)], here(), "static"),
        lambda: ([graph(), graph()], here(), "static"),
        lambda: ([graph()], here(), "dynamic"),
        lambda: ([graph()], here(workers=3), "static"),
        lambda: ([graph()], replace(here(), machine="another"), "static"),
    ],
)
def test_choices_are_of_a_graph_a_machine_and_a_policy(other: Any) -> None:
    kept.keep([graph()], here(choices=FOUND), "static")
    assert kept.chosen([graph()], here(), "static") is not None
    assert kept.chosen(*other()) is None


def test_names_and_bookkeeping_are_no_part_of_what_a_graph_is() -> None:
    class Told(Net):
        """The same work, and a few numbers beside it."""

        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:  # type: ignore[override]
            return super().forward(x), x[0, :3] + 1

    told = raised(Told().eval(), torch.randn(1, 64)).graph
    assert told.name != graph().name
    assert kept.digest(told) == kept.digest(graph()) != kept.digest(graph(80))


DAMAGED = [b"", b"{", b"[]", b"\xff", b"{}", b"7"]


@pytest.mark.parametrize(
    "entry",
    [
        *DAMAGED,
        *(
            json.dumps(asdict(COSTS) | change).encode()
            for change in ({"alone": 0}, {"alone": -1}, {"task_ns": 1e12}, {"event_ns": "7"}, {"task_ns": True}, {"more": 1.0})
        ),
        b'{"alone": NaN, "together": 1, "task_ns": 1, "event_ns": 1}',
    ],
)
def test_damaged_costs_are_ignored(entry: bytes) -> None:
    cache.keep("costs", "a machine", entry)
    assert kept.costs("a machine") is None


@pytest.mark.parametrize(
    ("part", "change"),
    [
        ("choices", {"grain": 0}), ("choices", {"splits": "8"}), ("choices", {"signalled": "rows"}), ("choices", {"signalled": ["all"]}),
        ("choices", {"no such": 1}), ("costs", {"task_ns": -1}), ("costs", {"no such": 1}), ("costs", {"bytes_per_ns": None}),
    ],
)  # fmt: skip
def test_choices_that_are_damaged_or_out_of_range_are_ignored(part: str, change: dict[str, Any]) -> None:
    kept.keep([graph()], here(choices=FOUND), "static")
    key = kept._key([graph()], here(), "static")
    whole = kept.entry("choices", key)
    kept.file("choices", key, whole | {part: whole[part] | change})
    assert kept.chosen([graph()], here(), "static") is None


@pytest.mark.parametrize("entry", [*DAMAGED, b'{"costs": 1, "choices": {}}', b'{"costs": {}, "choices": []}'])
def test_damaged_choices_are_ignored(entry: bytes) -> None:
    cache.keep("choices", kept._key([graph()], here(), "static"), entry)
    assert kept.chosen([graph()], here(), "static") is None


# ---- used


def test_a_target_at_hand_has_the_costs_of_its_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    guessed = targets.named("cpu", workers=2)
    assert target_for(options(workers=2), CPU) == replace(guessed, machine=cpu.machine())
    kept.keep_costs(cpu.machine(), COSTS)
    assert target_for(options(workers=2), CPU) == replace(COSTS.on(guessed), machine=cpu.machine())
    assert target_for(options(target=guessed), CPU) == guessed
    monkeypatch.setenv("MKC_TUNED", "0")
    assert target_for(options(workers=2), CPU) == replace(guessed, machine=cpu.machine())


def test_a_model_is_planned_with_the_choices_that_were_kept_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = Net().eval(), torch.randn(1, 64)
    kept.keep([graph()], replace(targets.named("cpu", workers=2), machine=cpu.machine(), choices=FOUND, task_ns=7.0), "static")

    def planned(**given: Any) -> Target:
        return mkc.compile(model, x, workers=2, **given).compilation.target

    assert (planned().choices, planned().task_ns, planned().machine) == (FOUND, 7.0, "")
    assert planned(choices=Choices(grain=2.0)).choices == Choices(grain=2.0)
    assert planned(choices=UNCHOSEN).choices == UNCHOSEN
    assert planned(policy="dynamic").choices == UNCHOSEN
    monkeypatch.setenv("MKC_TUNED", "0")
    assert planned().choices == UNCHOSEN


def test_targets_named_in_full_are_taken_as_they_are() -> None:
    kept.keep([graph()], replace(machine(2), machine="", choices=FOUND), "static")
    assert mkc.compile(Net().eval(), torch.randn(1, 64), target=machine(2)).compilation.target == machine(2)
