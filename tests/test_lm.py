"""Language models: unmodified Hugging Face models answer as in PyTorch, in one launch."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import Any
from unittest import mock

import pytest
import torch
from laws import test_stream as streaming
from oracle import machine

import mkc
from mkc.compiler import compile_graphs
from mkc.frontend.executable import Executable
from mkc.inspect.account import Explanation
from mkc.numerics import grade_answer, teacher_forced
from mkc.targets import cuda
from mkc.targets.interpreter import Interpreter

transformers = pytest.importorskip("transformers")


def tiny(kind: str, **changes: Any) -> Any:
    """A random model of a real architecture, small enough to compile in seconds."""
    torch.manual_seed(0)
    sizes = dict(
        vocab_size=50, hidden_size=48, intermediate_size=100, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64, tie_word_embeddings=True, pad_token_id=0, eos_token_id=None,
        bos_token_id=None,
    )  # fmt: skip
    config = getattr(transformers, f"{kind}Config")(**(sizes | changes))
    model = getattr(transformers, f"{kind}ForCausalLM")(config).eval().requires_grad_(False)
    for parameter in model.parameters():  # far apart logits, so that rounding decides nothing
        parameter.mul_(3.0) if parameter.dim() > 1 else None
    return model


def expected(model: Any, ids: list[int], count: int) -> list[int]:
    asked = torch.tensor([ids])
    told = model.generate(asked, attention_mask=torch.ones_like(asked), max_new_tokens=count, do_sample=False)
    return list(told[0, len(ids) :].tolist())


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("Qwen3", {"head_dim": 16}),
        ("Llama", {"num_key_value_heads": 4}),
        ("Qwen2", {}),
    ],
)
def test_an_unmodified_model_generates_what_pytorch_generates(kind: str, changes: dict[str, Any]) -> None:
    model = tiny(kind, **changes)
    lm = mkc.CausalLM(model, max_length=48, chunk=4, workers=2)
    for ids in ([7], [3, 9, 27], list(range(1, 12))):  # shorter than a chunk, one chunk less one, several
        assert lm.generate_ids(ids, 12) == expected(model, ids, 12)


def test_a_whole_answer_is_one_launch_and_repeats_bit_for_bit() -> None:
    lm = mkc.CausalLM(tiny("Qwen3"), max_length=32, chunk=8, workers=3)
    first = lm.generate_ids([1, 2, 3], 10)
    caches = [c.clone() for c in lm.state.caches]
    assert lm.launches == 1
    for _ in range(20):
        assert lm.generate_ids([1, 2, 3], 10) == first
    assert all(torch.equal(a.view(torch.int32), b.view(torch.int32)) for a, b in zip(caches, lm.state.caches, strict=True))


def test_weights_and_caches_may_move_between_two_answers() -> None:
    model = tiny("Qwen3")
    lm = mkc.CausalLM(model, max_length=32)
    before = lm.generate_ids([5, 3, 8], 6)
    for tensor in (*model.parameters(), *lm.state.caches):
        tensor.data = tensor.data.clone()
    assert lm.generate_ids([5, 3, 8], 6) == before
    model.lm_head.weight.data = -model.lm_head.weight.data
    assert lm.generate_ids([5, 3, 8], 6) == mkc.CausalLM(model, max_length=32).generate_ids([5, 3, 8], 6) != before


def test_caches_that_came_to_share_memory_are_refused_at_every_answer() -> None:
    lm = mkc.CausalLM(tiny("Qwen3"), max_length=32)
    before, apart = lm.generate_ids([5, 3, 8], 6), lm.state.caches[1].data
    lm.state.caches[1].data = lm.state.caches[0].data
    for _ in range(2):
        with pytest.raises(mkc.InputError, match="share memory"):
            lm.generate_ids([5, 3, 8], 6)
    lm.state.caches[1].data = apart
    assert lm.generate_ids([5, 3, 8], 6) == before


def test_both_policies_and_any_number_of_workers_agree() -> None:
    model = tiny("Qwen3")
    answers = [
        mkc.CausalLM(model, max_length=32, chunk=8, policy=policy, workers=workers).generate_ids([5, 6], 10)
        for policy, workers in (("static", 1), ("static", 5), ("dynamic", 3))
    ]
    assert answers[0] == answers[1] == answers[2] == expected(model, [5, 6], 10)


def test_logits_of_a_given_text_are_those_that_the_tokens_came_from() -> None:
    lm = _small()
    ids = [1, 2, 3]
    told = lm.generate_ids(ids, 10)
    logits = lm.logits([*ids, *told[:-1]])
    assert logits.shape == (12, 50)
    assert logits[2:].argmax(-1).tolist() == told
    torch.testing.assert_close(logits, teacher_forced(lm.model, [*ids, *told[:-1]]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_an_answer_is_as_near_to_float64_as_eagers(dtype: torch.dtype) -> None:
    graded = grade_answer(mkc.CausalLM(tiny("Qwen3").to(dtype), max_length=32, chunk=8, workers=2), [1, 2, 3], 20)
    assert graded.passed, str(graded)


def test_an_end_of_sequence_token_ends_the_run_inside_the_kernel() -> None:
    model = tiny("Qwen3")
    told = expected(model, [1, 2, 3], 12)
    stop = told[4]
    model.generation_config.eos_token_id = stop
    lm = mkc.CausalLM(model, max_length=32, chunk=8, workers=2)
    assert lm.generate_ids([1, 2, 3], 12) == told[: told.index(stop) + 1]
    steps = int(lm.state.tensors[2]) - 3  # tokens in the cache beyond the prompt
    assert steps == told.index(stop)


# ---- several sequences

PROMPTS = ([7], [3, 9, 27], list(range(1, 12)), [49, 48, 47, 46])


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("Qwen3", {"head_dim": 16}),
        ("Llama", {"num_key_value_heads": 4}),
        ("Mistral", {"sliding_window": 5}),
        ("Gemma3", {"head_dim": 16, "sliding_window": 5, "layer_types": ["sliding_attention", "full_attention"]}),
    ],
)
def test_each_prompt_of_a_batch_is_answered_as_alone(kind: str, changes: dict[str, Any]) -> None:
    model = tiny(kind, **changes) if kind != "Gemma3" else tiny_gemma3(**changes)
    lm = mkc.CausalLM(model, batch=4, max_length=48, chunk=4, workers=2)
    told = [expected(model, ids, 12) for ids in PROMPTS]
    assert len({tuple(answer) for answer in told}) > 1
    assert lm.generate_ids(PROMPTS, 12) == told
    assert lm.generate_ids(PROMPTS[2:0:-1], 12) == told[2:0:-1]  # with rows to spare
    assert lm.generate_ids(PROMPTS[2], 12) == told[2]


def tiny_gemma3(**changes: Any) -> Any:
    """Its text model, which has layers of two kinds."""
    with mock.patch.object(transformers, "Gemma3Config", transformers.Gemma3TextConfig):
        return tiny("Gemma3", **changes)


def test_a_sequence_that_has_ended_disturbs_nobody_and_all_that_have_end_the_run() -> None:
    model = tiny("Qwen3", vocab_size=500)
    told = [expected(model, ids, 12) for ids in PROMPTS]
    model.generation_config.eos_token_id = [told[1][2], told[2][5], told[3][0]]
    lm = mkc.CausalLM(model, batch=5, max_length=48, chunk=4, workers=2)
    for prompts in (PROMPTS, PROMPTS[1:], PROMPTS[3:]):
        assert lm.generate_ids(prompts, 12) == [expected(model, ids, 12) for ids in prompts]
    assert lm.state.tensors[2].tolist() == [4, 0, 0, 0, 0]  # the first token ended it: no step was taken beyond the prompt
    assert len(expected(model, PROMPTS[0], 12)) == 12
    assert lm.state.tensors[4]


def test_a_batch_is_one_launch_and_repeats_bit_for_bit() -> None:
    lm = mkc.CausalLM(tiny("Qwen3"), batch=3, max_length=32, chunk=8, workers=3)
    first = lm.generate_ids([[1, 2, 3], [4], [5, 6]], 10)
    caches = [c.clone() for c in lm.state.caches]
    assert lm.launches == 1
    for policy, workers in (("static", 5), ("dynamic", 2)):
        other = mkc.CausalLM(lm.model, batch=3, max_length=32, chunk=8, policy=policy, workers=workers)
        assert other.generate_ids([[1, 2, 3], [4], [5, 6]], 10) == first
    for _ in range(10):
        assert lm.generate_ids([[1, 2, 3], [4], [5, 6]], 10) == first
        assert all(torch.equal(a.view(torch.int32), b.view(torch.int32)) for a, b in zip(caches, lm.state.caches, strict=True))


# ---- who reads prompts


def test_a_batch_with_a_long_prompt_is_read_by_a_kernel_of_its_own_a_launch_for_each() -> None:
    model = tiny("Qwen3")
    lm = mkc.CausalLM(model, batch=4, max_length=48, chunk=4, workers=2, prompt_steps=4)
    short = [ids for ids in PROMPTS if len(ids) <= 4]
    assert lm.generate_ids(short, 6) == [expected(model, ids, 6) for ids in short]
    assert (lm.launches, "_reader" in vars(lm)) == (1, False)
    assert lm.generate_ids(PROMPTS, 6) == [expected(model, ids, 6) for ids in PROMPTS]
    assert (lm.launches, "_reader" in vars(lm)) == (1 + 4 + 1, True)


def test_an_end_inside_a_prompt_ends_nothing() -> None:
    model = tiny("Qwen3")
    model.generation_config.eos_token_id = [7, 9, 27, 49]  # those of two prompts, first and last ones too
    told = [expected(model, ids, 12) for ids in PROMPTS]
    assert mkc.CausalLM(model, batch=4, max_length=48, chunk=4, workers=2).generate_ids(PROMPTS, 12) == told
    lm = mkc.CausalLM(model, max_length=48, chunk=4, workers=2)
    assert [lm.generate_ids(ids, 12) for ids in PROMPTS] == told


def test_the_shortest_prompt_and_the_longest_answer_fill_the_room_side_by_side() -> None:
    model = tiny("Qwen3")
    lm = mkc.CausalLM(model, batch=2, max_length=24, chunk=4, workers=2)
    prompts = [[3], [*range(1, 13)]]  # the first goes on while the second is answered, and no further
    assert lm.generate_ids(prompts, 12) == [expected(model, ids, 12) for ids in prompts]
    assert lm.state.tensors[2].tolist() == [23, 23]


@contextmanager
def interpreted() -> Iterator[None]:
    """Kernels are run by the interpreter, those of streaming workers too."""

    def kernel(made: Executable) -> Interpreter:
        return Interpreter(made.compilation.program, [section.tasks for section in made.compilation.sections])

    found = cached_property(kernel)
    found.__set_name__(Executable, "kernel")
    with mock.patch.object(Executable, "kernel", found), mock.patch("mkc.compiler.render"):
        yield


@pytest.mark.parametrize("batch", [1, 3])
def test_decoding_that_streams_reads_short_prompts_in_its_one_launch(batch: int) -> None:
    model = streaming.MODELS["qwen3"]()
    model.generation_config.eos_token_id = 80
    prompts, target = streaming.PROMPTS[:batch], machine(3, streams=True)
    told = streaming.by_torch("qwen3", prompts, 4, 80)
    with interpreted():
        for steps, launches in ((64, 1), (5, 1), (4, 1 + batch)):
            lm = mkc.CausalLM(model, batch=batch, max_length=24, chunk=4, target=target, prompt_steps=steps)
            assert lm.compilation.program.streams
            assert lm.generate_ids(prompts, 4) == told
            assert (lm.launches, "_reader" in vars(lm)) == (launches, launches > 1)


def test_a_negative_number_of_prompt_steps_is_refused() -> None:
    with pytest.raises(mkc.InputError, match="prompt_steps=-1 must be a number of tokens"):
        mkc.CausalLM(tiny("Qwen3"), prompt_steps=-1)


def test_logits_of_several_texts_are_each_ones_own() -> None:
    lm = mkc.CausalLM(tiny("Qwen3"), batch=3, max_length=32, chunk=8, workers=2)
    texts = [[1, 2, 3], [9], [30, 31, 32, 33, 34]]
    for ids, logits in zip(texts, lm.logits(texts), strict=True):
        torch.testing.assert_close(logits, teacher_forced(lm.model, ids))


@pytest.mark.parametrize("batch", [0, 17, -1])
def test_a_batch_that_is_too_small_or_too_large_is_refused(batch: int) -> None:
    with pytest.raises(mkc.InputError, match=f"batch={batch} must be from 1 to 16"):
        mkc.CausalLM(tiny("Qwen3"), batch=batch)


def test_more_prompts_than_the_batch_or_a_bad_one_among_them_are_refused() -> None:
    lm = mkc.CausalLM(tiny("Qwen3"), batch=2, max_length=32, chunk=8, workers=1)
    for prompts, message in (
        ([[1], [2], [3]], "3 prompts for a CausalLM with batch=2"),
        ([[1], []], "one or more token ids"),
        ([[1], [99]], "below 50"),
        ([[1], [1] * 30], "30 prompt tokens and max_new_tokens=4 do not fit"),
    ):
        with pytest.raises(mkc.InputError, match=message):
            lm.generate_ids(prompts, 4)
    with pytest.raises(mkc.InputError, match="2 prompts for a CausalLM with batch=1"):
        _small().generate_ids([[1], [2]], 4)


@pytest.mark.parametrize(
    ("ids", "count", "message"),
    [([], 4, "one or more token ids"), ([99], 4, "below 50"), ([1] * 30, 4, "do not fit"), ([1], 0, "do not fit")],
)
def test_bad_prompts_are_refused(ids: list[int], count: int, message: str) -> None:
    lm = _small()
    with pytest.raises(mkc.InputError, match=message):
        lm.generate_ids(ids, count)


def test_a_model_in_training_or_of_another_kind_is_refused() -> None:
    with pytest.raises(mkc.ModelError, match="training mode"):
        mkc.CausalLM(tiny("Qwen3").train())
    with pytest.raises(mkc.ModelError, match="not a Hugging Face model"):
        mkc.CausalLM(torch.nn.Linear(3, 3))


def test_a_path_without_a_model_is_refused(tmp_path: Any) -> None:
    with pytest.raises(mkc.ModelError, match="cannot load"):
        mkc.CausalLM.from_pretrained(str(tmp_path))


def test_a_model_without_weights_is_planned_for_a_gpu_that_is_elsewhere() -> None:
    target = cuda.target(arch="sm_90a")
    model = tiny("Qwen3")
    there = mkc.CausalLM(model, max_length=32, chunk=8, target="cpu")
    with torch.device("meta"):
        hollow = type(model)(model.config).eval()
    planned = mkc.explain(mkc.CausalLM(hollow, max_length=32, chunk=8, target=target))
    compiled = [s.graph for s in there.compilation.sections]
    assert planned == Explanation.of([compile_graphs(compiled, target)])
    assert planned.floor_ns > 0


def test_a_model_without_weights_is_not_run_and_needs_a_target_in_full() -> None:
    model = tiny("Llama").to("meta")
    with pytest.raises(mkc.InputError, match="only be planned"):
        mkc.CausalLM(model)
    lm = mkc.CausalLM(model, max_length=32, chunk=8, target=cuda.target(arch="sm_90a"))
    with pytest.raises(mkc.InputError, match="planned, not run"):
        lm.generate_ids([1], 4)


_KEPT: list[Any] = []


def _small() -> Any:
    if not _KEPT:
        _KEPT.append(mkc.CausalLM(tiny("Qwen3"), max_length=32, chunk=8, workers=1))
    return _KEPT[0]
