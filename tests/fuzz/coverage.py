"""What mkc parses, fuzzed with coverage by atheris: python tests/fuzz/coverage.py TARGET -max_total_time=60 (no target: their names).

pip install "mkc-compiler[fuzz]" first. A finding is an exception that is not mkc's own; atheris writes its bytes to a file.
"""

import json
import os
import sys
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import atheris

os.environ["HF_HUB_OFFLINE"] = "1"
FOLDER = Path(tempfile.mkdtemp(prefix="mkc-fuzz-"))
os.environ["MKC_CACHE_DIR"] = str(FOLDER / "kernels")

with atheris.instrument_imports(include=["mkc", "safetensors", "typer"]):
    from safetensors import SafetensorError, safe_open
    from typer.testing import CliRunner

    from mkc import cache, config
    from mkc.cli import app
    from mkc.errors import MkcError
    from mkc.frontend.loading import _refuse_absurd
    from mkc.inspect.stages import file_name
    from mkc.passes.render import comment, drawable


def kept(data: bytes) -> None:
    """A kept kernel of any bytes is whole or made again."""
    cache.kept("fuzz", "key", lambda: b"made")
    (entry,) = (FOLDER / "kernels").iterdir()
    entry.write_bytes(data)
    found = cache.kept("fuzz", "key", lambda: b"made")
    assert found in (b"made", data[36:])


def variables(data: bytes) -> None:
    """Every variable with any value."""
    text = data.replace(b"\0", b"")
    for variable in config.VARIABLES:
        os.environb[variable.name.encode()] = text
    for read in (config.target_name, config.workers, config.deadline_ns, config.cache_dir, config.dump_dir, config.debug):
        with suppress(MkcError):
            read()
    for variable in config.VARIABLES:
        del os.environ[variable.name]


def arguments(data: bytes) -> None:
    """Command lines of words between line ends."""
    words = data.decode("utf-8", "replace").replace("\0", "").split("\n")
    if "doctor" not in words:
        done = CliRunner().invoke(app, words)
        assert done.exception is None or isinstance(done.exception, SystemExit)


def names(data: bytes) -> None:
    """A user's name in a comment, in a picture and in a file's name."""
    text = data.decode("utf-8", "replace")
    assert len(f"x{comment(text)}".splitlines()) == 1
    assert not set(comment(text)) & set('\\/"?\0')
    assert "\0" not in drawable(text)
    assert "/" not in file_name(text)


def configs(data: bytes) -> None:
    """A config.json."""
    with suppress(ValueError, RecursionError, MkcError):
        found = json.loads(data)
        if isinstance(found, dict):
            _refuse_absurd(found)


def weights(data: bytes) -> None:
    """A safetensors file, as transformers opens it."""
    path = FOLDER / "model.safetensors"
    path.write_bytes(data)
    with suppress(SafetensorError), safe_open(path, "numpy") as file:
        for name in file.keys():  # noqa: SIM118  (no mapping)
            file.get_slice(name).get_shape()


TARGETS: dict[str, Callable[[bytes], None]] = {f.__name__: f for f in (kept, variables, arguments, names, configs, weights)}

if __name__ == "__main__":
    if len(sys.argv) < 2 or sys.argv[1] not in TARGETS:
        sys.exit(f"a target: {' '.join(TARGETS)}")
    atheris.Setup([sys.argv[0], *sys.argv[2:]], TARGETS[sys.argv[1]])
    atheris.Fuzz()
