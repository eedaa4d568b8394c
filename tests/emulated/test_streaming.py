"""The device code of streaming workers, run on the host: it means what the operators' references mean, whoever is held up."""

import ctypes
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from unittest import mock

import pytest
import torch
from emulated.emulator import Emulator
from laws import test_stream
from laws.test_stream import (
    MODELS,
    PROMPTS,
    answers,
    by_torch,
    decoded,
    decoding,
    plain,
    reading,
    side_by_side,
    steps_for,
    tiny,
    told,
)
from torch import nn

import mkc
from mkc.frontend.convert import convert
from mkc.frontend.executable import Executable
from mkc.frontend.trace import trace
from mkc.ir.choices import EDGES, UNCHOSEN, Choices
from mkc.ir.program import SLOT_BYTES
from mkc.passes.pack import ring_slots
from mkc.passes.stream import stream
from mkc.targets import cuda
from mkc.targets.kernel import UNTUNED, Tuning

MODELS |= {
    "wide": lambda: tiny("Qwen3", intermediate_size=8192, hidden_size=576),
    "heads": lambda: tiny("Qwen3", head_dim=128, num_attention_heads=8),
    "short ring": lambda: tiny("Qwen3", head_dim=128, num_attention_heads=8, hidden_size=512, intermediate_size=1536),
    "few tiles": lambda: tiny("Qwen3", hidden_size=32, intermediate_size=6912, num_hidden_layers=2),
    "few tiles, turns": lambda: tiny("Llama", hidden_size=32, intermediate_size=8960, num_hidden_layers=2, mlp_bias=True),
    "gemma3, wide": lambda: tiny("Gemma3Text", hidden_size=1152, vocab_size=1000, layer_types=["full_attention"]),
    "gemma3, turns": lambda: tiny("Gemma3Text", hidden_size=2304, vocab_size=500, layer_types=["full_attention"]),
}
LOADERS = (12, 13)  # warps of a block
SIXTEEN = (0, 1, 2, 3, 60, 61, 62, 63, 64, 65, 126, 127, 128, 129, 130, 5)


def assert_as_interpreted(
    kind: str,
    workers: int,
    starts: Sequence[int],
    folder: Path,
    choices: Choices = UNCHOSEN,
    arch: str = "sm_90a",
    tuning: Tuning = UNTUNED,
    page: int | None = None,
    slots: int | None = None,
    late: tuple[int, int] | None = None,
) -> None:
    """Launches of one step and of two leave the tokens that the interpreter finds, and caches as near as roundings allow. Rows
    that a cache does not have are not numbers."""
    expected, theirs = decoded(kind, workers, True, 3, *starts)
    state, section = decoding(MODELS[kind](), *starts, page=page)
    for cache in () if page else state.caches:
        for row, start in enumerate(starts):
            cache[row, :, start:] = torch.nan
    target = replace(cuda.target(arch=arch, workers=workers), choices=choices)
    if slots is not None:
        most = ring_slots(stream(section.graph, target), target)
        target = replace(target, scratch_bytes=target.scratch_bytes - (most - slots) * (SLOT_BYTES + 16))
    executable = Executable([section], target, torch.device("cpu"))
    executable.kernel = Emulator(executable.compilation, folder, tuning, late)  # type: ignore[misc, assignment]
    for steps in (1, 2):
        executable(list(state.tensors), steps=[steps])
    assert told(state, 3, starts) == expected
    for mine, other in zip(side_by_side(state), theirs, strict=True):
        for row, start in enumerate(starts):
            known = (x[row, :, : start + 3].double() for x in (mine, other))
            torch.testing.assert_close(*known, rtol=2**-6, atol=2**-5)


@pytest.mark.parametrize(("kind", "workers", "start"), [("qwen3", 2, 62), ("llama", 3, 0), ("heads", 1, 130)])
def test_a_sequence(kind: str, workers: int, start: int, tmp_path: Path) -> None:
    assert_as_interpreted(kind, workers, [start], tmp_path)


def test_parts_of_more_splits_than_are_merged_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(test_stream, "ROOM", 768)
    graph = stream(decoding(MODELS["qwen3"](), 700)[1].graph, cuda.target(arch="sm_90a", workers=12))
    assert {node["splits"] for node in graph.nodes if node.op == "decode_attention"} == {6}
    assert_as_interpreted("qwen3", 12, [700], tmp_path)


@pytest.mark.parametrize(
    ("kind", "workers"),
    [
        pytest.param("narrow", 1, marks=pytest.mark.slow),
        pytest.param("odd", 1, marks=pytest.mark.slow),  # 18 turns of 8 tiles side by side, in three rounds
        ("odd, long", 1),  # 100 fragments of each
        ("odd, biased", 3),
        pytest.param("narrow", 5, marks=pytest.mark.slow),
        pytest.param("odd", 2, marks=pytest.mark.slow),
        pytest.param("odd, long", 2, marks=pytest.mark.slow),
        pytest.param("odd, biased", 5, marks=pytest.mark.slow),
    ],
)
def test_tiles_pass_side_by_side(kind: str, workers: int, tmp_path: Path) -> None:
    target = cuda.target(arch="sm_90a", workers=workers)
    beside = {node["abreast"] for node in stream(plain(kind), target).nodes if node.op == "stream_linear"}
    assert 8 in beside
    assert_as_interpreted(kind, workers, [62], tmp_path)


@pytest.mark.parametrize(
    ("kind", "workers"),
    [("few tiles", 3), pytest.param("few tiles, turns", 3, marks=pytest.mark.slow)],
)
def test_halves_of_a_row_meet_weights_of_their_own(kind: str, workers: int, tmp_path: Path) -> None:
    graph = stream(plain(kind), cuda.target(arch="sm_90a", workers=workers))
    assert any(node["halved"] for node in graph.nodes if node.op == "stream_linear")
    assert_as_interpreted(kind, workers, [62], tmp_path)


@pytest.mark.parametrize(
    ("kind", "workers", "start"),
    [
        ("gemma3", 3, 62),  # all weights are held before the rows come
        pytest.param("gemma3, wide", 2, 1, marks=pytest.mark.slow),  # sums meet several times
        pytest.param("glm4", 5, 0, marks=pytest.mark.slow),
        pytest.param("gemma3, wide", 5, 62, marks=pytest.mark.slow),
        pytest.param("gemma3, turns", 3, 1, marks=pytest.mark.slow),  # batches of weights take turns
        pytest.param("gemma2", 1, 62, marks=pytest.mark.slow),  # layers hand on to each other
    ],
)
def test_a_residual_and_a_norm_meet_the_same_weights(kind: str, workers: int, start: int, tmp_path: Path) -> None:
    assert_as_interpreted(kind, workers, [start], tmp_path)


@pytest.mark.parametrize(
    ("kind", "workers", "starts", "choices"),
    [
        ("qwen3", 2, [62], Choices(signalled=EDGES)),
        pytest.param("gemma3", 2, [62], Choices(signalled=EDGES), marks=pytest.mark.slow),
        pytest.param("gemma3", 3, [62], Choices(signalled=("rows",)), marks=pytest.mark.slow),
        pytest.param("gemma3", 3, [62], Choices(signalled=("norms", "heads")), marks=pytest.mark.slow),
        ("olmo2", 3, [62], Choices(signalled=("norms", "heads"), splits=1)),
        ("llama", 3, (63, 1, 128), Choices(signalled=("rows",), one_in=1)),
        ("qwen3", 12, (0, 129), Choices(signalled=("rows",))),  # whose parts are merged
        ("qwen3", 12, [129], Choices(merge_from=2)),  # and those of one sequence, published
    ],
)
def test_signalled_edges(kind: str, workers: int, starts: Sequence[int], choices: Choices, tmp_path: Path) -> None:
    assert_as_interpreted(kind, workers, starts, tmp_path, choices)


@pytest.mark.parametrize(
    ("kind", "workers", "start"),
    [
        ("qwen3", 2, 128),  # two blocks, one after the other
        ("gemma2", 5, 127),  # heads of 256, a window, splits of which the window hides all
        pytest.param("qwen3", 12, 127, marks=pytest.mark.slow),  # a split that is empty at first
        pytest.param("qwen3", 2, 186, marks=pytest.mark.slow),
        pytest.param("gemma2", 5, 15, marks=pytest.mark.slow),
        pytest.param("qwen2", 3, 127, marks=pytest.mark.slow),  # 14 heads of queries for one of keys
        pytest.param("llama, biased", 4, 127, marks=pytest.mark.slow),  # heads of 48
        pytest.param("granite", 4, 129, marks=pytest.mark.slow),  # and of 80
    ],
)
def test_keys_come_through_the_ring(kind: str, workers: int, start: int, tmp_path: Path) -> None:
    assert_as_interpreted(kind, workers, [start], tmp_path)


@pytest.mark.parametrize("launches", [4, pytest.param(40, marks=pytest.mark.slow)])
def test_a_short_ring_gives_the_same_whoever_is_held_up(launches: int, tmp_path: Path) -> None:
    """Three slots, and four of them to each block of keys: every warp comes by the same slot again within a block."""
    state, section = decoding(MODELS["short ring"](), 70)
    executable = Executable([section], cuda.target(arch="sm_120a", workers=4), torch.device("cpu"))
    streams = executable.compilation.program.streams
    assert streams is not None
    assert streams.ring_slots == 3
    executable.kernel = Emulator(executable.compilation, tmp_path, Tuning(window=3))  # type: ignore[misc, assignment]
    before, found = [tensor.clone() for tensor in state.tensors], []
    for _ in range(launches):
        for tensor, value in zip(state.tensors, before, strict=True):
            tensor.copy_(value)
        executable(list(state.tensors), steps=[3])
        found.append([told(state, 3, [70]), *(cache.tolist() for cache in state.caches)])
    assert all(other == found[0] for other in found)


class Count(nn.Module):
    """One tile of weights, so that the second of two workers has none."""

    def __init__(self) -> None:
        super().__init__()
        self.ones = nn.Linear(64, 8, bias=False)
        self.ones.weight.data.fill_(1.0)
        self.register_buffer("at", torch.zeros(1, 8))

    def forward(self, x: torch.Tensor) -> None:
        self.at.add_(self.ones(x))


class Chain(nn.Module):
    """One tile, and then several: the second of two workers has no sums of its own before it looks for the first's."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.several = nn.Linear(64, 8, bias=False), nn.Linear(8, 512, bias=False)
        self.register_buffer("at", torch.zeros(1, 512))

    def forward(self, x: torch.Tensor) -> None:
        self.at.add_(self.several(self.one(x)))


@pytest.mark.parametrize("clock", [0, 2**31 + 1, 2**32 - 2**20])
def test_nobody_waits_for_half_a_turn_of_the_clock(clock: int, tmp_path: Path) -> None:
    """Which may begin anywhere, and a worker without sums cannot say since when it waits."""
    model, x = Chain().to(torch.bfloat16).eval().requires_grad_(False), torch.ones(1, 64, dtype=torch.bfloat16)
    section = convert(trace(model, (x,), {}), loops=True)
    executable = Executable([section], cuda.target(arch="sm_90a", workers=2), torch.device("cpu"))
    executable.kernel = emulator = Emulator(executable.compilation, tmp_path)  # type: ignore[misc, assignment]
    emulator.library.set_clock(ctypes.c_uint(clock))
    executable([x], steps=[2])
    assert (emulator.library.clock_cycles() - clock) % 2**32 < 2**28


class Odd(nn.Module):
    """Rows whose ends are no words."""

    def __init__(self) -> None:
        super().__init__()
        self.wide = nn.Linear(64, 13)
        self.register_buffer("seen", torch.zeros(3, 13))

    def forward(self, x: torch.Tensor) -> None:
        self.seen.copy_(self.wide(x))


def test_outputs_of_several_rows_end_where_the_rows_do(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, x = Odd().to(torch.bfloat16).eval().requires_grad_(False), torch.randn(3, 64, dtype=torch.bfloat16)
    section = convert(trace(model, (x,), {}), loops=True)
    executable = Executable([section], cuda.target(arch="sm_90a", workers=2), torch.device("cpu"))
    assert executable.compilation.program.streams is not None
    executable.kernel = emulator = Emulator(executable.compilation, tmp_path)  # type: ignore[misc, assignment]
    emulator.late = (1, 0)  # who has the ends
    executable([x], steps=[1])
    torch.testing.assert_close(model.seen, model.wide(x), rtol=2**-7, atol=2**-8)


def test_a_worker_without_streams_takes_every_step_whoever_is_late(tmp_path: Path) -> None:
    """Its talking warps need no others in a step: they may decide about the next while a compute warp has not looked at this one's."""
    model, x = Count().to(torch.bfloat16).eval().requires_grad_(False), torch.ones(1, 64, dtype=torch.bfloat16)
    section = convert(trace(model, (x,), {}), loops=True)
    executable = Executable([section], cuda.target(arch="sm_90a", workers=2), torch.device("cpu"))
    streams = executable.compilation.program.streams
    assert streams is not None
    assert streams.bounds.tolist() == [0, 1, 1]
    executable.kernel = emulator = Emulator(executable.compilation, tmp_path)  # type: ignore[misc, assignment]
    for warp in range(8):
        emulator.late = (1, warp)
        executable([x], steps=[3])
    assert model.at.tolist() == [[8 * 3 * 64] * 8]


@pytest.mark.parametrize(
    ("arch", "window"),
    [("sm_120a", 3), *(pytest.param(*slow, marks=pytest.mark.slow) for slow in (("sm_90a", 4), ("sm_120a", 1)))],
)  # which have rings of 4 and of 12
def test_loaders_keep_a_pace_unless_they_are_close_ahead(arch: str, window: int, tmp_path: Path) -> None:
    assert_as_interpreted("qwen3", 2, [62], tmp_path, arch=arch, tuning=Tuning(window=window, pace=100))


@pytest.mark.parametrize(
    ("slots", "window", "loader"),
    [(5, 4, 0), (5, 3, 1), *(pytest.param(*slow, marks=pytest.mark.slow) for slow in ((3, 3, 1), (4, 3, 0), (11, 4, 1)))],
)
def test_a_loader_is_late_by_a_lap(slots: int, window: int, loader: int, tmp_path: Path) -> None:
    """The other one has filled slots of the next lap before it looks whether those of this lap have come."""
    late = (1, LOADERS[loader])
    assert_as_interpreted("qwen3", 2, [62], tmp_path, tuning=Tuning(window=window, pace=0), slots=slots, late=late)


@pytest.mark.parametrize(
    ("kind", "workers", "starts"),
    [
        ("qwen3", 12, (0, 129)),
        ("llama", 3, (63, 1, 2, 64, 127, 128, 3, 186)),
        ("wide", 2, (62, 130)),
        ("gemma2", 5, (127, 15)),  # heads of 256, a window
        ("qwen2", 3, (127, 62)),  # 14 heads of queries for one of keys, joined biases
        pytest.param("heads", 1, SIXTEEN, marks=pytest.mark.slow),
        pytest.param("mistral", 3, (130, 62, 69), marks=pytest.mark.slow),
        pytest.param("gpt-neox", 3, (130, 62), marks=pytest.mark.slow),  # some dims are turned; a gap from head to head
        pytest.param("llama, biased", 4, (127, 0), marks=pytest.mark.slow),
        pytest.param("granite", 4, (129, 1), marks=pytest.mark.slow),
    ],
)
def test_several_sequences(kind: str, workers: int, starts: tuple[int, ...], tmp_path: Path) -> None:
    assert_as_interpreted(kind, workers, starts, tmp_path)


@pytest.mark.parametrize(
    ("kind", "workers", "starts"),
    [
        ("qwen3", 2, (128,)),
        ("gemma2", 5, (127,)),  # any heads, a window
        pytest.param("qwen3", 12, (0, 129), marks=pytest.mark.slow),
        ("llama", 3, (63, 1, 2, 64, 127, 128, 3, 184)),
        pytest.param("heads", 1, SIXTEEN, marks=pytest.mark.slow),
        pytest.param("qwen2", 3, (127,), marks=pytest.mark.slow),  # several tasks share keys
    ],
)
def test_keys_in_pages(kind: str, workers: int, starts: tuple[int, ...], tmp_path: Path) -> None:
    assert_as_interpreted(kind, workers, starts, tmp_path, page=128)


@pytest.mark.parametrize("bad", [9, *(pytest.param(bad, marks=pytest.mark.slow) for bad in (-10, 2**40)), -(2**63)])
def test_a_page_outside_of_the_pool_is_reported_and_nothing_is_written(bad: int, tmp_path: Path) -> None:
    state, section = decoding(MODELS["qwen3"](), 62, 129, page=128)
    state.table[0, 0] = bad
    for cache in state.caches:
        cache.nan_to_num_()
    before = [cache.clone() for cache in state.caches]
    theirs = state.table[1].tolist()
    executable = Executable([section], cuda.target(arch="sm_90a", workers=3), torch.device("cpu"))
    executable.kernel = Emulator(executable.compilation, tmp_path)  # type: ignore[misc, assignment]
    with pytest.raises(mkc.OutOfRangeError, match=f"index {bad} is outside of a dimension of {len(before[0])}"):
        executable(list(state.tensors), steps=[1])
    for old, cache in zip(before, state.caches, strict=True):
        changed = (old != cache).flatten(1).any(1).nonzero().flatten().tolist()
        assert changed == [theirs[1]]  # the other sequence's


@pytest.mark.parametrize(
    ("kind", "workers", "starts"),
    [("qwen3", 12, (0, 129, 63)), pytest.param("heads", 1, SIXTEEN, marks=pytest.mark.slow)],
)
def test_several_sequences_in_chunks(kind: str, workers: int, starts: tuple[int, ...], tmp_path: Path) -> None:
    with mock.patch("mkc.ops._streaming.MOST_INPUT", 0):
        assert_as_interpreted(kind, workers, starts, tmp_path)


@pytest.mark.parametrize("prompts", [PROMPTS[:1], PROMPTS])
def test_prompts_are_read_by_steps(prompts: Sequence[Sequence[int]], tmp_path: Path) -> None:
    state, section = reading("qwen3", prompts, 80, 5)
    executable = Executable([section], cuda.target(arch="sm_90a", workers=3), torch.device("cpu"))
    executable.kernel = Emulator(executable.compilation, tmp_path)  # type: ignore[misc, assignment]
    executable(list(state.tensors), steps=[steps_for(prompts, 3)])
    assert answers(state, prompts, 3, 80, 5) == by_torch("qwen3", prompts, 3, 80, 5)
