"""What all tests share: slow ones run only when asked for, kernels are kept beside pytest's cache, memory is poisoned."""

import os
from collections.abc import Callable
from pathlib import Path

import hypothesis
import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--slow", action="store_true", help="also run tests marked slow, and more examples of every law")
    parser.addoption("--update-golden", action="store_true", help="write what golden tests find to tests/golden")


def pytest_configure(config: pytest.Config) -> None:
    os.environ.setdefault("MKC_CACHE_DIR", str(config.rootpath / ".pytest_cache" / "kernels"))
    os.environ.setdefault("MKC_POISON", "1")  # what is read before it is written is NaN in every test
    os.environ.setdefault("MKC_TUNED", "0")  # plans are the same on every machine
    os.environ.setdefault("MKC_KEEP", "0")  # and made anew, however a test has changed how
    examples = 1000 if config.getoption("--slow") else 60
    hypothesis.settings.register_profile("mkc", max_examples=examples, deadline=None, derandomize=examples == 60)
    hypothesis.settings.load_profile("mkc")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not config.getoption("--slow"):
        slow = [item for item in items if item.get_closest_marker("slow")]
        config.hook.pytest_deselected(items=slow)
        items[:] = [item for item in items if item not in slow]


@pytest.fixture
def golden(pytestconfig: pytest.Config) -> Callable[[str, str], None]:
    """Compare a text with the file of that name in tests/golden, or write the file under --update-golden."""

    def check(name: str, text: str) -> None:
        path = Path(__file__).parent / "golden" / name
        if pytestconfig.getoption("--update-golden"):
            path.parent.mkdir(exist_ok=True)
            path.write_text(text)
        assert path.is_file(), f"there is no {path.name} yet; run pytest --update-golden"
        assert text == path.read_text(), "if this change is meant, run pytest --update-golden and read the diff"

    return check
