"""What mkc itself parses: kept kernels, environment variables, the command line. Any bytes are refused in a sentence, or made again."""

import os
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from mkc import cache, config
from mkc.cli import app
from mkc.errors import OptionError

ANYWHERE = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
texts = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]))


@ANYWHERE
@given(st.binary(), st.integers(0, 200), st.sampled_from(["over", "cut", "instead"]), st.binary(max_size=50))
def test_a_kept_file_is_whole_or_made_again(tmp_path: Path, payload: bytes, at: int, how: str, by: bytes) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MKC_CACHE_DIR", str(tmp_path / "kernels"))
        assert cache.kept("fuzz", "key", lambda: payload)[:0] == b""
        (entry,) = (tmp_path / "kernels").iterdir()
        whole = entry.read_bytes()
        at %= len(whole)
        broken = {"over": whole[:at] + by + whole[at + len(by) :], "cut": whole[:at], "instead": by}[how]
        entry.write_bytes(broken)
        again = cache.kept("fuzz", "key", lambda: b"made again")
        assert again == (whole[36:] if broken == whole else b"made again")
        entry.unlink()


READERS = {
    "MKC_TARGET": config.target_name,
    "MKC_WORKERS": config.workers,
    "MKC_DEADLINE": config.deadline_ns,
    "MKC_CACHE_DIR": config.cache_dir,
    "MKC_DUMP": config.dump_dir,
    "MKC_DEBUG": config.debug,
    "MKC_DELAY": config.delays,
    "MKC_POISON": config.poison,
    "MKC_CHECK": config.checks,
    "MKC_TUNED": config.tuned,
    "MKC_KEEP": config.keeps,
}


def test_every_variable_of_ours_is_tried() -> None:
    assert set(READERS) == {variable.name for variable in config.VARIABLES} - {"CXX"}


@given(st.sampled_from(sorted(READERS)), texts)
@example("MKC_WORKERS", "9" * 5000)
@example("MKC_WORKERS", "²")
@example("MKC_WORKERS", "٣")
@example("MKC_DEADLINE", "nan")
@example("MKC_DEADLINE", "1e400")
@example("MKC_CACHE_DIR", "~nobody-of-this-name/x")
@example("MKC_DUMP", "~nobody-of-this-name/x")
def test_a_variable_is_taken_or_named(name: str, value: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        with suppress(ValueError):
            patch.setitem(os.environ, name, value)
        try:
            READERS[name]()
        except OptionError as error:
            assert name in str(error)  # noqa: PT017


WORDS = ["inspect", "explain", "run", "doctor", "-o", "--target", "--workers", "--prompt", "cpu", "-1", "x.py:f", ".", "/", "..", "--", ""]


@given(st.lists(st.sampled_from(WORDS) | texts, max_size=6))
@example(["explain", "[/red]"])
@example(["explain", "a:b.py:c"])
@example(["run", "--prompt", "", ".", "--workers", "9999999999999999999999"])
@example(["inspect", "\n", "-o", "\n"])
@settings(max_examples=100)
def test_a_command_line_is_obeyed_or_refused(words: list[str]) -> None:
    """Never with a traceback. Nothing is downloaded: transformers is told to stay offline."""
    if words == ["doctor"]:
        return
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_OFFLINE", "1")
        done = CliRunner().invoke(app, words)
    assert done.exception is None or isinstance(done.exception, SystemExit), (words, done.exception)
