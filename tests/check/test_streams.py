"""The checker on plans of streaming workers: it accepts those of real models, and refuses what would go wrong."""

from dataclasses import replace
from functools import cache
from itertools import pairwise
from random import Random
from unittest import mock

import numpy as np
import pytest
from check.mutations import MUTATIONS
from check.outcomes import Runner
from check.plans import STREAMED, plan
from check.stream_mutations import STREAM_MUTATIONS, _begun
from check.test_mutants import missed, refused, tally
from laws.test_stream import MODELS, decoding

from mkc.compiler import Compilation, compile_graphs
from mkc.errors import UnsoundPlan
from mkc.ir.check import check
from mkc.ir.program import Program
from mkc.ir.streams import check_streams
from mkc.ir.target import Target
from mkc.targets import cuda

SAMPLE = 48


def hopper(workers: int) -> Target:
    return cuda.target(arch="sm_90a", workers=workers)


@cache
def streamed(kind: str, workers: int, batch: int = 1, page: int | None = None) -> Compilation:
    with mock.patch("mkc.compiler.render"), mock.patch("mkc.compiler.check"):
        return compile_graphs([decoding(MODELS[kind](), *[0] * batch, page=page)[1].graph], hopper(workers))


@pytest.mark.parametrize(
    ("kind", "workers"),
    [*((kind, 132) for kind in MODELS), *((kind, n) for kind in ("qwen3, deep", "gemma2", "olmo", "gpt2") for n in (1, 5, 16))],
)
def test_plans_of_models_are_accepted(kind: str, workers: int) -> None:
    program = streamed(kind, workers).program
    assert program.streams is not None
    check(program, hopper(workers))


@pytest.mark.parametrize("kind", ["qwen3, deep", "llama", "qwen2", "gemma"])
@pytest.mark.parametrize(("workers", "batch"), [(1, 2), (5, 3), (132, 8), (132, 16)])
def test_plans_of_several_sequences_are_accepted(kind: str, workers: int, batch: int) -> None:
    program = streamed(kind, workers, batch).program
    assert program.streams is not None
    check(program, hopper(workers))


@pytest.mark.parametrize(("kind", "workers", "batch"), [("qwen3, deep", 132, 1), ("llama", 5, 3), ("gemma2", 16, 1)])
def test_plans_of_sequences_in_pages_are_accepted(kind: str, workers: int, batch: int) -> None:
    program = streamed(kind, workers, batch, 128).program
    assert program.streams is not None
    check(program, hopper(workers))


def test_a_table_that_changes_is_refused_where_keys_come_ahead_of_their_task() -> None:
    program = streamed("qwen3", 5, 3, 128).program
    (meaning,) = program.meanings
    parts = list(meaning.parts)
    (table,) = {m for part in parts if part.streamed for m in part.tiling.imaps if m.tensor.shape == (3, 2)}
    at = next(i for i, part in enumerate(parts) if not part.streamed)
    parts[at] = replace(parts[at], tiling=replace(parts[at].tiling, omaps=(*parts[at].tiling.omaps, table)))
    message = said(replace(program, meanings=(replace(meaning, parts=tuple(parts)),)), 5)
    assert message  # whoever notices first
    with pytest.raises(UnsoundPlan, match="writes the table by which keys of"):
        check_streams(replace(program, meanings=(replace(meaning, parts=tuple(parts)),)), hopper(5))


@pytest.mark.parametrize("name", STREAMED)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_no_mutant_that_can_go_wrong_is_accepted(name: str) -> None:
    runner = Runner(plan(name))
    counts = tally(name, SAMPLE, lambda p: runner.is_harmful(p, 12), lambda p: True)
    assert missed(counts) == []
    assert len(counts) > len(MUTATIONS) // 2


@pytest.mark.parametrize("kind", STREAM_MUTATIONS)
@pytest.mark.parametrize(
    ("model", "workers", "batch"), [("qwen3", 5, 1), ("qwen3, deep", 132, 1), ("llama", 16, 1), ("qwen3", 16, 3)]
)
def test_what_the_device_alone_would_notice_is_refused(kind: str, model: str, workers: int, batch: int) -> None:
    program = streamed(model, workers, batch).program
    for seed in range(4):
        made = STREAM_MUTATIONS[kind](program, Random(seed))
        assert made is None or refused(made, hopper(workers)), seed


# ---- what polls do and what they do not


def test_a_poll_completes_no_plain_memory() -> None:
    """The projection's workers poll who polled the gather's readers; yet they add its row, which lies in plain memory."""
    made = streamed("qwen3, deep", 132)
    parts = made.program.meanings[0].parts
    attention = next(i for i, part in enumerate(parts) if part.name.startswith("decode_attention"))
    embedding = next(part for part in reversed(parts[:attention]) if part.name.startswith("gather"))
    first, end = parts[attention + 1].tasks
    waiting = first + int(np.flatnonzero(made.program.tasks["waits"][first:end])[0])
    message = refusal(with_tasks(made.program, waiting, waits=0), 132)
    assert embedding.name in message
    assert f"> {waiting}:" in message


def test_words_are_overwritten_only_after_all_have_read_them() -> None:
    """Where readers may leave all words alone, nothing tells a worker of the next step that the others are done."""
    made = streamed("qwen3, deep", 5).program
    (meaning,) = made.meanings
    parts = tuple(replace(p, streamed=replace(p.streamed, polls=()) if p.streamed else None) for p in meaning.parts)
    message = refusal(replace(made, meanings=(replace(meaning, parts=parts),)), 5)
    assert "the next step's" in message or "of a step before" in message


def test_an_early_task_does_not_find_what_the_one_before_it_left_in_memory() -> None:
    made = streamed("olmo", 132).program
    handed = [t for t in early_candidates(made) if (program := begun(made, t)) and "meet in bytes" in said(program, 132)]
    assert handed


def early_candidates(program: Program) -> list[int]:
    """Places of computing tasks that wait for nothing behind another such, and are not early."""
    assert program.streams is not None
    places = {(w, int(r["place"])) for w, rs in enumerate(_by_worker(program)) for r in rs}
    return [
        int(program.bounds[w]) + place
        for w, place in sorted(places)
        if (w, place - 1) in places
        and not program.streams.early[int(program.bounds[w]) + place]
        and not program.tasks["waits"][program.queue[int(program.bounds[w]) + place]]
    ]


def _by_worker(program: Program) -> list[np.ndarray]:
    assert program.streams is not None
    return [program.streams.records[lo:hi] for lo, hi in pairwise(program.streams.bounds.tolist())]


def begun(program: Program, at: int) -> Program:
    return _begun(program, at, True)


def with_tasks(program: Program, at: int | list[int], **fields: int) -> Program:
    tasks = program.tasks.copy()
    for field, value in fields.items():
        tasks[field][at] = value
    return replace(program, tasks=tasks)


def said(program: Program, workers: int) -> str:
    try:
        check(program, hopper(workers))
    except UnsoundPlan as error:
        return str(error)
    return ""


def refusal(program: Program, workers: int) -> str:
    message = said(program, workers)
    assert message
    return message
