"""What was traced and planned before is taken again, where nothing that it depends on has changed, and only there."""

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from laws.test_stream import MODELS
from torch import nn

import mkc
from mkc import compiler
from mkc.frontend import decoding
from mkc.frontend.decoding import make_state, raise_decoding
from mkc.frontend.fingerprint import fingerprint
from mkc.ir import stored
from mkc.ir.target import Target
from mkc.targets import cuda

llama = pytest.importorskip("transformers.models.llama.modeling_llama")


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MKC_CACHE_DIR", str(tmp_path))
    monkeypatch.setenv("MKC_KEEP", "1")
    return tmp_path


@pytest.fixture
def model() -> Any:
    return MODELS["narrow"]()


def raised(model: Any, room: int = 64) -> Any:
    return raise_decoding(model, make_state(model, room, 4), (3,))


def test_what_was_traced_is_taken_again_for_other_weights(model: Any) -> None:
    found = raised(model)
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(-0.5)
    with mock.patch.object(decoding, "trace", side_effect=AssertionError):
        again = raised(model)
    assert (again.graph, again.outputs, again.out_spec) == (found.graph, found.outputs, found.out_spec)
    assert again.sources.keys() == found.sources.keys()
    weights = [name for name in found.sources if name.endswith(".weight")]
    assert weights
    assert all(again.sources[name].tensor is found.sources[name].tensor for name in weights)


@pytest.mark.parametrize("room", [60, 68])
def test_inputs_of_other_shapes_are_traced(model: Any, room: int) -> None:
    raised(model)
    with mock.patch.object(decoding, "trace", side_effect=ZeroDivisionError), pytest.raises(ZeroDivisionError):
        raised(model, room)


def changes(model: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Each in turn on top of those before."""
    layer = model.model.layers[0]
    layer.self_attn.scaling *= 2
    yield
    layer.mlp.act_fn = nn.GELU()
    yield
    model.config.rms_norm_eps = 0.5
    yield
    layer.mlp.gate_proj.weight = layer.mlp.up_proj.weight
    yield
    layer.mlp.add_module("more", nn.Linear(2, 2))
    yield
    monkeypatch.setattr(llama.LlamaMLP, "forward", llama.LlamaRMSNorm.forward)
    yield
    monkeypatch.setattr(llama, "apply_rotary_pos_emb", llama.rotate_half)
    yield
    monkeypatch.setitem(llama.ALL_ATTENTION_FUNCTIONS._local_mapping, "sdpa", llama.eager_attention_forward)
    yield


def test_every_change_of_code_or_shape_changes_the_digest(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    digests = [fingerprint(model), *(fingerprint(model) for _ in changes(model, monkeypatch))]
    assert None not in digests
    assert len(set(digests)) == len(digests)


class Foreign(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


def foreign(*given: Any, **more: Any) -> Any:
    return given[0]


def test_code_of_nobody_known_has_no_digest(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    assert fingerprint(model)
    libraries = (llama, "rotate_half"), (llama.LlamaMLP, "forward")
    torchs = (nn.Linear, "forward"), (nn.functional, "silu"), (torch.Tensor, "split"), (torch, "einsum")
    for patched, name in (*libraries, *torchs):
        with monkeypatch.context() as only:
            only.setattr(patched, name, foreign)
            assert fingerprint(model) is None
    model.model.layers[0].mlp.act_fn = Foreign()
    assert fingerprint(model) is None


def test_an_attribute_that_is_not_plain_leaves_no_digest(model: Any) -> None:
    model.model.layers[0].anything = object()
    assert fingerprint(model) is None


# ---- plans

TARGET = cuda.target(arch="sm_90a", workers=7)


def planned(model: Any, target: Target = TARGET) -> compiler.Compilation:
    return compiler.compile_graphs([raised(model).graph], target)


def test_what_was_planned_is_taken_again_whole(model: Any) -> None:
    found = planned(model)
    with mock.patch.object(compiler, "plan", side_effect=AssertionError):
        again = planned(model)
    assert again.source == found.source
    assert stored.dumps(again.program) == stored.dumps(found.program)
    assert [str(s.schedule) for s in again.sections] == [str(s.schedule) for s in found.sections]


def test_another_target_is_planned(model: Any) -> None:
    planned(model)
    with mock.patch.object(compiler, "plan", side_effect=ZeroDivisionError), pytest.raises(ZeroDivisionError):
        planned(model, cuda.target(arch="sm_90a", workers=8))


def test_what_is_damaged_is_made_again(model: Any, folder: Path) -> None:
    found = planned(model)
    for path in folder.iterdir():
        path.write_bytes(path.read_bytes()[:-9])
    assert planned(model).source == found.source
    with mock.patch.object(compiler, "plan", side_effect=AssertionError):
        planned(model)


def test_nothing_is_kept_unless_it_may_be(model: Any, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MKC_KEEP", "0")
    planned(model)
    assert not list(folder.iterdir())


def test_a_plan_that_nobody_proved_is_not_kept(model: Any, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MKC_CHECK", "0")
    planned(model)
    assert not list(folder.glob("plan-*"))


def test_a_model_from_a_kept_plan_answers_as_it_should(model: Any) -> None:
    first = mkc.CausalLM(model, max_length=32).generate_ids([5, 6, 7], 6)
    with mock.patch.object(compiler, "plan", side_effect=AssertionError):
        assert mkc.CausalLM(model, max_length=32).generate_ids([5, 6, 7], 6) == first


# ---- values


@given(st.binary(max_size=60))
def test_bytes_that_hold_no_value_are_refused(data: bytes) -> None:
    with pytest.raises(ValueError):  # noqa: PT011  (whatever is wrong with them)
        stored.loads(data)


@given(st.data())
def test_a_changed_byte_is_refused_or_gives_a_value(data: st.DataObject) -> None:
    good = bytearray(stored.dumps((TARGET, 1.5, ("a", None))))
    good[data.draw(st.integers(0, len(good) - 1))] = data.draw(st.integers(0, 255))
    with suppress(ValueError):
        stored.loads(bytes(good))


@pytest.mark.parametrize("value", [object(), {1: 2}, [1], print, TARGET.__class__])
def test_only_values_of_ours_can_be_stored(value: object) -> None:
    with pytest.raises(TypeError):
        stored.dumps((1, value))


def test_values_come_back_as_they_were() -> None:
    value = (1, -0.0, float("inf"), True, None, "ä", (), TARGET, (TARGET, TARGET), 1 << 80)
    again = stored.loads(stored.dumps(value))
    assert repr(again) == repr(value)
    assert again[7] is again[8][0]
