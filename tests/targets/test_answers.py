"""A trained model in every dtype, on the host and on a GPU: PyTorch's tokens, the same bits again and again, one kernel."""

import json
import subprocess
import sys
from functools import cache
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import pytest
import torch
from devices import EVERYWHERE, on_gpu

import mkc
from mkc.numerics import grade_answer

transformers = pytest.importorskip("transformers")

ADDER = Path(__file__).parents[2] / "examples" / "adder"
TIMES = {"cpu": 20, "cuda": 1000}  # an answer is repeated
SUMS = {"cpu": 12, "cuda": 100}  # unseen ones that are asked, of examples/adder/demo.py
LONGEST = 7  # tokens of an answer
FLOATS = ("float32", "bfloat16", "float16")

everywhere = pytest.mark.parametrize("device", EVERYWHERE)
in_every_dtype = pytest.mark.parametrize("dtype", FLOATS)


@cache
def adder(device: str, dtype: str, batch: int = 1) -> Any:
    return mkc.CausalLM.from_pretrained(str(ADDER / "model"), dtype=dtype, device=device, max_length=32, batch=batch)


@cache
def questions() -> list[str]:
    spec = spec_from_file_location("sums", ADDER / "sums.py")
    assert spec is not None
    assert spec.loader is not None
    sums = module_from_spec(spec)
    spec.loader.exec_module(sums)
    return [sums.prompt(*pair) for pair in sums.unseen_pairs(max(SUMS.values()), seed=3)]


def told_by_torch(lm: Any, ids: list[int]) -> list[int]:
    asked = torch.tensor([ids], device=lm.model.device)
    told = lm.model.generate(asked, attention_mask=torch.ones_like(asked), max_new_tokens=LONGEST, do_sample=False)
    return list(told[0, len(ids) :].tolist())


@everywhere
@in_every_dtype
def test_the_adder_answers_token_for_token_as_in_pytorch(device: str, dtype: str) -> None:
    lm = adder(device, dtype)
    for question in questions()[: SUMS[device]]:
        ids = lm.tokenizer(question)["input_ids"]
        assert lm.generate_ids(ids, LONGEST) == told_by_torch(lm, ids), question


@everywhere
@in_every_dtype
def test_a_batch_of_sums_is_answered_as_each_would_be_alone(device: str, dtype: str) -> None:
    lm, alone = adder(device, dtype, 5), adder(device, dtype)
    asked = [alone.tokenizer(question)["input_ids"] for question in ("1+2=", *questions()[:3], "98765+12345=")]
    told = lm.generate_ids(asked, LONGEST)
    assert told == [told_by_torch(alone, ids) for ids in asked]
    assert len({len(ids) for ids in asked}) > 1
    assert lm.generate(["1+2=", "40+2="], LONGEST) == ["3", "24"]


@everywhere
@in_every_dtype
def test_logits_are_as_near_to_float64_as_eagers_and_no_token_is_wrong(device: str, dtype: str) -> None:
    lm = adder(device, dtype)
    for question in questions()[:4]:
        graded = grade_answer(lm, lm.tokenizer(question)["input_ids"], LONGEST)
        assert graded.passed, f"{question} {graded}"


@everywhere
@in_every_dtype
def test_an_answer_repeats_bit_for_bit_tokens_and_caches(device: str, dtype: str) -> None:
    lm = adder(device, dtype)
    ids, launches = lm.tokenizer("98765+12345=")["input_ids"], lm.launches
    tokens = lm.generate_ids(ids, LONGEST)
    caches = [bits(cache).clone() for cache in lm.state.caches]
    for _ in range(TIMES[device]):
        assert lm.generate_ids(ids, LONGEST) == tokens
        assert all(torch.equal(a, bits(b)) for a, b in zip(caches, lm.state.caches, strict=True))
    assert lm.launches == launches + 1 + TIMES[device]


def bits(tensor: torch.Tensor) -> torch.Tensor:
    """Poison is no number, and so equals nothing but its bits."""
    return tensor.view(torch.uint8)


@on_gpu
@in_every_dtype
def test_the_gpu_sees_one_copy_in_the_kernel_and_one_copy_out(dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MKC_POISON", "0")  # which is a kernel of its own
    # A process of its own: within pytest PyTorch's profiler has been seen to record nothing.
    command = [sys.executable, str(Path(__file__).with_name("profiled.py")), str(ADDER / "model"), dtype]
    ran = subprocess.run(command, capture_output=True, text=True, check=True, timeout=300)
    counts = json.loads(ran.stdout.splitlines()[-1])
    assert counts == {"Memcpy HtoD": 1, "megakernel": 1, "Memcpy DtoH": 1}
