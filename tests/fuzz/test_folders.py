"""Model folders that are damaged or hostile: a ModelError with a sentence, before anything large is made, and no code is run."""

import json
import pickle
import shutil
import struct
import zipfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import mkc
from mkc.frontend.loading import load

ADDER = Path(__file__).parents[2] / "examples" / "adder" / "model"
FILES = sorted(path.name for path in ADDER.iterdir())
JSON = [name for name in FILES if name.endswith(".json")]
WEIGHTS = "model.safetensors"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return Path(shutil.copytree(ADDER, tmp_path / "model"))


def refused(folder: Path, match: str = ".", **given: Any) -> None:
    with pytest.raises(mkc.ModelError, match=match) as caught:
        mkc.CausalLM.from_pretrained(str(folder), **given)
    assert len(str(caught.value)) > 20


def tries(folder: Path) -> None:
    """It loads, or it is refused."""
    with suppress(mkc.ModelError):
        load(str(folder), "auto", trust_remote_code=False)


def damaged(data: bytes, at: int, by: bytes, how: str) -> bytes:
    at %= len(data) + 1
    match how:
        case "cut":
            return data[:at]
        case "insert":
            return data[:at] + by + data[at:]
        case _:
            return data[:at] + by + data[at + len(by) :]


FEW = settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
MANY = 2**16


@FEW
@given(st.sampled_from(FILES), st.integers(0, MANY), st.binary(max_size=9), st.sampled_from(["cut", "insert", "over"]))
def test_a_damaged_file_is_refused_or_harmless(tmp_path: Path, name: str, at: int, by: bytes, how: str) -> None:
    folder = Path(shutil.copytree(ADDER, tmp_path / "model", dirs_exist_ok=True))
    folder.joinpath(name).write_bytes(damaged(folder.joinpath(name).read_bytes(), at, by, how))
    tries(folder)


odd = st.sampled_from([None, [], {}, [1, "a", None], {"a": -1}])
values = st.one_of(odd, st.booleans(), st.integers(-(2**70), 2**70), st.floats(), st.text(max_size=9))


@FEW
@given(st.sampled_from(JSON), st.integers(0, MANY), values)
def test_any_value_in_a_json_file_is_refused_or_harmless(tmp_path: Path, name: str, which: int, value: Any) -> None:
    folder = Path(shutil.copytree(ADDER, tmp_path / "model", dirs_exist_ok=True))
    held = json.loads(folder.joinpath(name).read_text())
    held[sorted(held)[which % len(held)]] = value
    folder.joinpath(name).write_text(json.dumps(held))
    tries(folder)


def header(text: str | bytes, size: int | None = None) -> bytes:
    raw = text.encode() if isinstance(text, str) else text
    return struct.pack("<Q", len(raw) if size is None else size) + raw


HEADERS = {
    "empty": b"",
    "short": b"\x07",
    "beyond the file": header("{}", 2**63),
    "no JSON": header("not json"),
    "deep": header("[" * 100_000),
    "a list": header("[]"),
    "no offsets": header('{"a": {"dtype": "F32", "shape": [2]}}'),
    "huge shape": header('{"a": {"dtype": "F32", "shape": [4611686018427387904, 8], "data_offsets": [0, 8]}}') + b"\0" * 8,
    "negative": header('{"a": {"dtype": "F32", "shape": [-2], "data_offsets": [0, 8]}}') + b"\0" * 8,
    "backwards": header('{"a": {"dtype": "F32", "shape": [2], "data_offsets": [8, 0]}}') + b"\0" * 8,
    "overlap": header(
        '{"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}, "b": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}'
    )
    + b"\0" * 8,
    "other tensors": header('{"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}') + b"\0" * 8,
    "unknown dtype": header('{"a": {"dtype": "Q9", "shape": [2], "data_offsets": [0, 8]}}') + b"\0" * 8,
    "not UTF-8": header(b"\xff\xfe{}"),
}


@pytest.mark.parametrize("weights", HEADERS.values(), ids=HEADERS)
def test_a_bad_safetensors_header_is_refused(folder: Path, weights: bytes) -> None:
    folder.joinpath(WEIGHTS).write_bytes(weights)
    refused(folder)


def config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    held = json.loads(path.read_text())
    if "num_hidden_layers" in changes:
        del held["layer_types"]
    path.write_text(json.dumps(held | changes))


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"num_hidden_layers": 10**9}, "num_hidden_layers=1000000000, beyond the 4096"),
        ({"vocab_size": 2**40}, "vocab_size=1099511627776, beyond the 2147483648"),
        ({"vocab_size": 2**30, "hidden_size": 2**20}, "the model's parameters take [0-9]+ GB, and cpu has"),
        ({"intermediate_size": 2**31, "num_hidden_layers": 4096}, "parameters take"),
        ({"hidden_size": -64}, "cannot load"),
        ({"hidden_size": 0}, "cannot load|no fitting weights"),
        ({"num_attention_heads": 0}, "cannot load"),
        ({"model_type": "no such model"}, "cannot load"),
        ({"vocab_size": 4711}, "no fitting weights|cannot load"),
        ({"num_hidden_layers": 64}, "no fitting weights for"),
    ],
)
def test_a_config_that_asks_for_too_much_is_refused_before_anything_is_made(folder: Path, changes: dict[str, Any], match: str) -> None:
    config(folder, **changes)
    refused(folder, match)


def test_caches_that_can_never_fit_are_refused_before_they_are_made(folder: Path) -> None:
    config(folder, max_position_embeddings=2**31)
    refused(folder, "caches for 2147483647 tokens take", max_length=2**31 - 1)


class Trap:
    """What a pickle runs when it is loaded."""

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return (Path("SPRUNG").touch, ())


@pytest.fixture
def trap(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder's parent is where a trap would leave its mark."""
    monkeypatch.chdir(folder.parent)
    return folder


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.safetensors", "model.pt"])
def test_pickled_weights_are_refused_unread(trap: Path, name: str) -> None:
    (trap / WEIGHTS).unlink()
    if name == "model.pt":
        (trap / "pytorch_model.bin").write_bytes(pickle.dumps(Trap()))
    else:
        with zipfile.ZipFile(trap / name, "w") as file:
            file.writestr("archive/data.pkl", pickle.dumps(Trap()))
    refused(trap, r"\.safetensors files only|cannot load")
    assert not Path("SPRUNG").exists()


CODE = "from pathlib import Path\nPath('SPRUNG').touch()\nfrom transformers import {base} as Own\n"


def test_a_model_that_needs_code_of_its_own_is_refused_and_the_way_out_named(trap: Path) -> None:
    (trap / "own.py").write_text(CODE.format(base="PretrainedConfig"))
    config(trap, model_type="own", auto_map={"AutoConfig": "own.Own"})
    refused(trap, "brings code of its own.*trust_remote_code=True")
    assert not Path("SPRUNG").exists()


def test_code_for_a_tokenizer_is_not_run_where_it_can_be_done_without(trap: Path) -> None:
    (trap / "own.py").write_text(CODE.format(base="PreTrainedTokenizerFast"))
    path = trap / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"auto_map": {"AutoTokenizer": ["own.Own", None]}, "tokenizer_class": "Own"}))
    tries(trap)
    assert not Path("SPRUNG").exists()
