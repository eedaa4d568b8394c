"""Kept kernels: rebuilt when damaged, shared between processes, never taken from a folder that others can write."""

import multiprocessing
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import mkc
from mkc import cache
from mkc.errors import BuildError, TargetError
from mkc.targets import cpu

PAGE = 'extern "C" int answer() { return 42; }'


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MKC_CACHE_DIR", str(tmp_path / "kernels"))
    return tmp_path / "kernels"


def never() -> bytes:
    raise AssertionError("it was kept already")


def test_what_was_built_is_not_built_again(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    library = cpu.build(PAGE, cpu.FLAGS)
    monkeypatch.setattr(cpu, "_compile", lambda *_: never())
    assert cpu.build(PAGE, cpu.FLAGS) == library
    with pytest.raises(AssertionError):
        cpu.build(PAGE, cpu.DEBUG_FLAGS)


@pytest.mark.parametrize("damage", [lambda b: b[:-1], lambda b: b[:-1] + b"?", lambda b: b"", lambda b: b"mkc0" + b[4:]])
def test_a_damaged_entry_is_made_again(folder: Path, damage: Callable[[bytes], bytes]) -> None:
    assert cache.kept("test", "key", lambda: b"payload") == b"payload"
    (entry,) = folder.iterdir()
    entry.write_bytes(damage(entry.read_bytes()))
    assert cache.kept("test", "key", lambda: b"made again") == b"made again"
    assert cache.kept("test", "key", never) == b"made again"


def _keep(number: int) -> bytes:
    def make() -> bytes:
        time.sleep(0.05)
        return b"payload" * 100_000

    return cache.kept("test", f"key {number % 2}", make)


def test_processes_share_a_folder(folder: Path) -> None:
    with multiprocessing.get_context("fork").Pool(4) as processes:
        assert set(processes.map(_keep, range(16), chunksize=1)) == {b"payload" * 100_000}
    assert len(list(folder.iterdir())) == 2


@pytest.mark.parametrize("mode", [0o770, 0o707, 0o777])
def test_a_folder_that_others_can_write_is_refused(folder: Path, mode: int) -> None:
    folder.mkdir()
    folder.chmod(mode)
    with pytest.raises(TargetError, match="chmod 700"):
        cache.kept("test", "key", never)


def test_a_folder_that_cannot_be_made_is_a_sentence(folder: Path) -> None:
    folder.write_text("a file")
    with pytest.raises(TargetError, match="set MKC_CACHE_DIR"):
        cache.kept("test", "key", never)


def test_without_a_compiler_the_error_says_so_and_the_process_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.arange(3.0)
    compiled = mkc.compile(lambda x: x * 2.015625)  # which no other test compiles
    with monkeypatch.context() as without:
        without.setenv("CXX", "/nowhere/g++")
        with pytest.raises(TargetError, match=r"\$CXX \(/nowhere/g\+\+\)"):
            compiled(x)
    assert torch.equal(compiled(x), x * 2.015625)


def test_what_the_compiler_says_is_in_the_error(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BuildError, match="nonsense"):
        cpu.build("nonsense", cpu.FLAGS)
    assert cpu.build(PAGE, cpu.FLAGS)
