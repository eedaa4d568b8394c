"""Pages of streaming workers: every architecture has its form of them, which compiles here and fits; newer GPUs run older forms."""

import re
from dataclasses import replace
from functools import cache
from random import Random
from typing import Any

import numpy as np
import pytest
import torch
from devices import on_gpu
from laws.test_stream import MODELS, decoding, exact, tiny, told
from oracle import interpreted

import mkc
from mkc.bench import models
from mkc.compiler import Compilation, compile_graphs
from mkc.errors import TargetError
from mkc.frontend.decoding import make_state, raise_decoding
from mkc.ir.choices import EDGES, Choices
from mkc.ir.graph import Graph
from mkc.ir.program import SLOT_BYTES, SLOT_FRAGMENTS, passing
from mkc.numerics import grade_answer
from mkc.ops._streaming import ABREAST, HELD, fragments
from mkc.passes.render import lay_in
from mkc.paths import TEMPLATES
from mkc.targets import cuda, nvrtc
from mkc.targets.cuda_kernel import require_likeness

MOST_SPILLED = 136  # bytes of a thread, all of its bodies together, where registers cannot change hands
SPILLED = {"sm_121a": 52}  # by NVRTC 13.5, which does better for its twin
WITHOUT_LOADERS = ("sm_80", "sm_86", "sm_87", "sm_89")
TWINS = ("sm_86", "sm_87", "sm_103a", "sm_121a")  # of architectures that are compiled for anyway


@cache
def decode_step(name: str, batch: int = 1, page: int | None = None) -> Graph:
    """Two layers of a model in its real width, which have the bodies of all, and its head; on meta, so without weights."""
    sizes = dict(models.CONFIGURATIONS[name], num_hidden_layers=2)
    kinds = dict(layer_types=["sliding_attention", "full_attention"]) if "sliding_window" in sizes else {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(models.CONFIGURATIONS, name, sizes | kinds)
        model = models.make(name, "meta", "bfloat16")
    return raise_decoding(model, make_state(model, 1024, 16, batch, page), ()).graph


@cache
def planned(name: str, arch: str, batch: int = 1, page: int | None = None) -> Compilation:
    return compile_graphs([decode_step(name, batch, page)], cuda.target(arch=arch))


# ---- without a GPU


def everywhere() -> list[Any]:
    slow = {("qwen3-0.6b", arch) for arch in TWINS} | {("llama-3.2-1b", a) for a in cuda.ARCHITECTURES if a not in ("sm_80", "sm_120a")}
    slow |= {(name, arch) for name in ("smollm2-135m", "gemma-3-1b") for arch in cuda.ARCHITECTURES if arch != "sm_90a"}
    names = ("qwen3-0.6b", "llama-3.2-1b", "smollm2-135m", "gemma-3-1b")  # two of them of odd depths
    pairs = [(name, arch) for name in names for arch in cuda.ARCHITECTURES]
    return [pytest.param(*pair, marks=pytest.mark.slow if pair in slow else ()) for pair in pairs]


@pytest.mark.parametrize(("name", "arch"), everywhere())
def test_a_page_compiles_and_fits_its_machine(name: str, arch: str) -> None:
    made = planned(name, arch)
    cubin = nvrtc.compile_cubin(made.source.complete, arch)
    streams, taken = made.program.streams, cubin.resources
    assert streams is not None
    assert taken.spill_bytes <= (MOST_SPILLED if arch in WITHOUT_LOADERS else SPILLED.get(arch, 0))
    assert taken.registers * (384 if arch in WITHOUT_LOADERS else 512) <= 65536
    assert streams.shared_bytes + taken.shared_bytes <= made.target.scratch_bytes
    assert "ignored" not in cubin.log  # registers that were to change hands


@pytest.mark.parametrize(
    ("name", "batch", "page"),
    [
        ("qwen3-0.6b", 8, 128),
        *(pytest.param(*given, marks=pytest.mark.slow) for given in (("qwen3-0.6b", 16, None), ("qwen3-0.6b", 2, None))),
        *(pytest.param("qwen3-8b", batch, None, marks=pytest.mark.slow) for batch in (1, 2, 8, 16)),
        *(pytest.param(name, 1, None, marks=pytest.mark.slow) for name in ("qwen3-1.7b", "qwen2.5-1.5b", "tiny")),
        *(pytest.param("gemma-3-1b", batch, None, marks=pytest.mark.slow) for batch in (2, 16)),
    ],
)
def test_nothing_spills_where_registers_change_hands(name: str, batch: int, page: int | None) -> None:
    """But what compute warps keep from task to task, of several sequences with heads of 256."""
    taken = nvrtc.compile_cubin(planned(name, "sm_90a", batch, page).source.complete, "sm_90a").resources
    kept = {("gemma-3-1b", 2): (48, 32), ("gemma-3-1b", 16): (16, 8)}
    assert (taken.spill_bytes, taken.stack_bytes) == kept.get((name, batch), (0, 0))


@pytest.mark.parametrize("choices", [Choices(signalled=EDGES), Choices(splits=1, signalled=("heads",))])
def test_pages_of_other_choices_compile_and_fit(choices: Choices) -> None:
    made = compile_graphs([decode_step("qwen3-0.6b")], replace(cuda.target(arch="sm_90a"), choices=choices))
    assert made.program.streams is not None
    assert nvrtc.compile_cubin(made.source.complete, "sm_90a").resources.registers * 512 <= 65536


@pytest.mark.parametrize("arch", cuda.ARCHITECTURES)
def test_the_ring_takes_the_shared_memory_there_is(arch: str) -> None:
    small, target = arch in ("sm_86", "sm_89", "sm_120a", "sm_121a"), cuda.target(arch=arch)
    streams = planned("qwen3-0.6b", arch).program.streams
    assert streams is not None
    assert streams.ring_slots == (3 if small else 7 if arch in WITHOUT_LOADERS else 11)
    assert streams.paced == target.bulk_copies == (arch not in WITHOUT_LOADERS)


@pytest.mark.parametrize("name", ["qwen3-0.6b", "gemma-3-1b"])
def test_the_head_keeps_its_part_of_the_cache(name: str) -> None:
    target, streams = cuda.target(arch="sm_90a"), planned(name, "sm_90a").program.streams
    assert streams is not None
    long = streams.records["fragments"] >= streams.resident_from
    assert target.workers // 2 < long.sum() <= target.workers
    assert 0 < long.sum() * streams.resident_slots * SLOT_BYTES < target.cache_bytes / 4
    assert "L2::evict_last" in nvrtc.ptx(planned(name, "sm_90a").source.complete, "sm_90a")


def test_without_a_cache_nothing_stays() -> None:
    made = compile_graphs([decode_step("smollm2-135m")], replace(cuda.target(arch="sm_90a"), cache_bytes=0))
    assert made.program.streams is not None
    assert made.program.streams.resident_slots == 0
    assert "kResidentSlots = 0" in made.source.complete
    assert "L2::evict_last" not in nvrtc.ptx(made.source.complete, "sm_90a")


@pytest.mark.parametrize(("name", "padding"), [("qwen3-0.6b", 0.0), ("smollm2-135m", 0.02), ("gemma-3-1b", 0.01)])
def test_hardly_more_than_the_weights_is_read(name: str, padding: float) -> None:
    streams = planned(name, "sm_90a").program.streams
    assert streams is not None
    weights = sum(2 * w.layout.numel for pack in streams.packs for w in pack.weights)
    read = int(streams.records["fragments"].sum()) * SLOT_BYTES // SLOT_FRAGMENTS
    assert weights <= read <= (1 + padding) * weights


@pytest.mark.parametrize(("name", "batch"), [("qwen3-0.6b", 1), ("qwen3-0.6b", 8), ("smollm2-135m", 1), ("gemma-3-1b", 1)])
def test_shares_of_a_product_differ_in_the_tiles_that_registers_hold_alone(name: str, batch: int) -> None:
    program = planned(name, "sm_90a", batch).program
    for part in program.meanings[0].parts:
        assert len({body.type for body in part.bodies}) == 1
        if part.streamed and part.streamed.weights:
            counts = {passing(tiles, deep, abreast) for _, tiles, deep, *_, abreast in part.streamed.passages}
            assert len({*part.bodies}) == len({count if count <= HELD else 0 for count in counts})


@pytest.mark.parametrize("name", ["qwen3-0.6b", "smollm2-135m", "gemma-3-1b"])
def test_streams_that_one_loop_multiplies_are_longer_than_a_batch(name: str) -> None:
    program = planned(name, "sm_90a").program
    assert program.streams is not None
    looped = [i for i, body in enumerate(program.bodies) if "Product<0," in body.computes]
    records = program.streams.records
    assert looped
    assert (records["fragments"][np.isin(records["body"], looped)] > HELD).all()


def test_a_gpu_without_bulk_copies_does_without() -> None:
    for arch, copies in (("sm_80", "cp.async.cg"), ("sm_90a", "cp.async.bulk")):
        page = nvrtc.ptx(planned("qwen3-0.6b", arch).source.complete, arch)
        assert copies in page
        assert ("cp.async.bulk" in page) == ("setmaxnreg" in page) == (arch == "sm_90a")


def test_headers_for_gpus_use_no_builtin_that_nvrtc_13_0_lacks() -> None:
    """Which is what comes with PyTorch for CUDA 13.0; tests compile with a newer one."""
    headers = [header for header in TEMPLATES.rglob("*.cuh") if not header.stem.startswith("host")]
    found = {name for header in headers for name in re.findall(r"^[^/]*(__builtin_\w+)", header.read_text(), re.MULTILINE)}
    assert found == {"__builtin_assume", "__builtin_bit_cast"}


@pytest.mark.parametrize("ring", ["ring_sm80", "ring_sm90"])
def test_rows_of_every_depth_pass_in_batches_that_registers_hold(ring: str) -> None:
    """A batch that is neither whole tiles nor a whole share of one is refused by the header."""
    claims = [
        f"static_assert(fits<mkc::Passage<{tiles}, {count}, {beside}>, {beside}>);"
        for beside in ABREAST
        for count in sorted({fragments(depth, beside) for depth in range(32, 32768, 32)})
        for tiles in (0, 1, 2, 9, 100)  # 0: as many as the stream has, more than six slots
    ]
    fits = "P::kBatch <= 6 && (P::kBatch <= P::kSlots || P::kSlots == 0) && (P::kHeld || P::kTilesABatch <= P::kRound)"
    fits += " && P::kRound * Beside <= 64"
    claims.insert(0, f"template <class P, int Beside> constexpr bool fits = {fits};")
    headers = [f"#include <mkc/{name}.cuh>" for name in (ring, "ops/stream_linear")]
    nvrtc.compile_cubin(lay_in("\n".join(["#define MKC_STREAMS", *headers, *claims])), "sm_90a")


@pytest.mark.parametrize(("arch", "workers"), [("sm_80", 108), ("sm_86", 7), ("sm_100a", 148), ("sm_120a", 170)])
def test_the_plan_for_a_gpu_means_what_the_model_means(arch: str, workers: int) -> None:
    state, section = decoding(MODELS["qwen3"](), 62)
    run = interpreted([section], cuda.target(arch=arch, workers=workers), order=Random(workers))
    assert run.compilation.program.streams is not None
    run(list(state.tensors), steps=[3])
    assert told(state, 3, [62]) == told_by_torch(62, 3)


@cache
def told_by_torch(start: int, steps: int) -> list[list[int]]:
    return exact("qwen3", steps, start)[0]


def test_a_plan_runs_on_gpus_that_have_no_less() -> None:
    archs = ("sm_86", "sm_80", "sm_120a", "sm_90a")
    runs = {plan: [chip for chip in archs if refusal(plan, chip) is None] for plan in archs}
    assert runs == {"sm_86": [*archs], "sm_80": ["sm_80", "sm_90a"], "sm_120a": ["sm_120a", "sm_90a"], "sm_90a": ["sm_90a"]}
    assert "bytes of shared memory, and loaders with bulk copies, are more" in (refusal("sm_90a", "sm_80") or "")


def refusal(plan: str, chip: str) -> str | None:
    try:
        require_likeness(planned("qwen3-0.6b", plan).program, cuda._CARDS[chip])
    except TargetError as error:
        return str(error)
    return None


# ---- with one


@on_gpu
@pytest.mark.parametrize("arch", ["sm_80", "sm_86", "sm_90a", "sm_120a"])
@pytest.mark.parametrize("kind", ["Qwen3", "Llama"])
def test_the_form_of_another_gpu_runs_here(kind: str, arch: str) -> None:
    """Its plan and its page, built for this GPU; the prompt's kernel too."""
    here, there = cuda.target(0), cuda.target(arch=arch, workers=cuda.target(0).workers)
    if (there.bulk_copies and not here.bulk_copies) or there.scratch_bytes > here.scratch_bytes:
        pytest.skip(f"{here.arch} lacks what {arch} has")
    deep: Any = dict(head_dim=128, num_attention_heads=8) if kind == "Qwen3" else {}
    model = tiny(kind, hidden_size=512, intermediate_size=1536, num_hidden_layers=3, **deep).to("cuda")
    lm = mkc.CausalLM(model, max_length=160, target=there)
    paged = mkc.CausalLM(model, max_length=160, target=there, page=128)
    assert lm.compilation.program.streams is not None
    prompt = list(range(5, 75))
    assert grade_answer(lm, prompt, 64).passed
    tokens = lm.generate_ids(prompt, 64)
    assert paged.compilation.program.streams is not None
    assert paged.generate_ids(prompt, 64) == tokens
    caches = [cache.view(torch.uint8).clone() for cache in lm.state.caches]
    for _ in range(20):
        assert lm.generate_ids(prompt, 64) == tokens
        assert all(torch.equal(a, b.view(torch.uint8)) for a, b in zip(caches, lm.state.caches, strict=True))


@on_gpu
@pytest.mark.parametrize("kind", ["Qwen3", "Llama", "Mistral"])
@pytest.mark.parametrize("batch", [1, 4, 16])
def test_sequences_in_shuffled_pages_are_answered_bit_for_bit_as_side_by_side(kind: str, batch: int) -> None:
    """Long and short prompts; pages that no sequence has are not numbers, before and after (MKC_POISON)."""
    deep: Any = dict(head_dim=128, num_attention_heads=8) if kind == "Qwen3" else {}
    model = tiny(kind, hidden_size=512, intermediate_size=1536, num_hidden_layers=3, max_position_embeddings=1024, **deep).to("cuda")
    lms = [mkc.CausalLM(model, batch=batch, max_length=900, prompt_steps=256, page=page) for page in (None, 128, 256)]
    prompts = [[(7 * row + 3 * i) % 96 for i in range((1, 70, 127, 128, 200, 640)[row % 6])] for row in range(batch)]
    for asked in (prompts, prompts[: batch // 2 + 1], [prompt[:150] for prompt in prompts]):
        expected = lms[0].generate_ids(asked, 140)
        for lm in lms[1:]:
            assert lm.compilation.program.streams is not None
            assert lm.state.pages is not None
            Random(batch).shuffle(lm.state.pages.free)
            assert lm.generate_ids(asked, 140) == expected
            others = sorted({*range(lm.state.pages.count + 1)} - {*lm.state.table.flatten().tolist()})
            assert all(cache[others].isnan().all() for cache in lm.state.caches)
