"""The documentation says what is so: its examples run and print what it shows, and what it names is there."""

import os
import re
import shutil
import subprocess
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parent.parent
NAMED = re.compile(r"`((?:mkc|templates|tests|docs|examples)/[\w./*-]+)`")
HINT = "if this change is meant, run pytest --update-golden tests/test_docs.py and read the diff"


def script(name: str) -> ModuleType:
    """A module of docs/, which is no package."""
    spec = spec_from_file_location(name, ROOT / "docs" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


blocks = script("blocks")


@pytest.mark.parametrize("path", blocks.PAGES, ids=lambda path: path.stem)
def test_the_examples_of_a_page_run_and_print_what_it_shows(
    path: Path, pytestconfig: pytest.Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    for name in ("MKC_TARGET", "MKC_WORKERS"):
        monkeypatch.delenv(name, raising=False)
    page = blocks.refreshed(path.read_text(), path.name)
    if pytestconfig.getoption("--update-golden"):
        path.write_text(page)
    assert page == path.read_text(), HINT


def test_the_page_of_environment_variables_is_that_of_config(pytestconfig: pytest.Config) -> None:
    environment = script("environment")
    if pytestconfig.getoption("--update-golden"):
        environment.PAGE.write_text(environment.page())
    assert environment.PAGE.read_text() == environment.page(), HINT


@pytest.mark.parametrize("path", blocks.PAGES, ids=lambda path: path.stem)
def test_files_and_tests_that_a_page_names_are_there(path: Path) -> None:
    page = path.read_text()
    made = dict(blocks.files(page))
    for name in NAMED.findall(page):
        assert name in made or "NAME" in name or any(ROOT.glob(name.rstrip("/"))), name
    tests = "\n".join(file.read_text() for file in (ROOT / "tests").rglob("test_*.py"))
    for name in re.findall(r"`(test_\w+)`", page):
        assert f"def {name}(" in tests, name


@pytest.mark.parametrize("machine", ["cuda", "host"])
def test_a_machine_supplies_the_names_that_the_page_lists(machine: str) -> None:
    page = (ROOT / "docs/adding-a-target.md").read_text()
    rows = [
        row.split("|")[1]
        for row in page.split("## Names")[1].split("## ")[0].splitlines()
        if row.startswith("| `")
    ]
    headers = (ROOT / "templates/mkc/arch").glob(f"{machine}*.cuh")
    header = "".join(path.read_text() for path in headers)
    assert [
        name for row in rows for name in re.findall(r"`(\w+)`", row) if not re.search(rf"\b{name}\b", header)
    ] == []


def test_every_page_stands_in_the_table_of_contents() -> None:
    listed = (ROOT / "docs" / "index.md").read_text().splitlines()
    assert [path.stem for path in blocks.PAGES[1:] if path.stem not in ("index", *listed)] == []


def test_the_operator_of_the_walk_through_passes_its_test(tmp_path: Path) -> None:
    for part in ("mkc", "templates", "tests"):
        shutil.copytree(ROOT / part, tmp_path / part, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    made = dict(blocks.files((ROOT / "docs/adding-an-operator.md").read_text()))
    for name, text in made.items():
        assert not (tmp_path / name).exists()
        (tmp_path / name).write_text(text)
    (test,) = (name for name in made if name.startswith("tests/"))
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", test]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
