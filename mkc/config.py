"""Every environment variable mkc reads, declared once: name, default, meaning. The docs table is made from this."""

import os
import re
from dataclasses import dataclass
from pathlib import Path

from mkc.errors import OptionError


@dataclass(frozen=True, slots=True)
class Variable:
    """One environment variable."""

    name: str
    default: str
    meaning: str

    def get(self) -> str:
        return os.environ.get(self.name, self.default)


TARGET = Variable("MKC_TARGET", "", "Where kernels run: `cpu`, `cuda`, or empty for CUDA when the inputs are there.")
WORKERS = Variable("MKC_WORKERS", "", "How many workers a kernel has. Empty: one per SM, or one per usable CPU.")
CACHE_DIR = Variable("MKC_CACHE_DIR", "", "Where compiled kernels are kept. Empty: `mkc` in `$XDG_CACHE_HOME`, or in `~/.cache`.")
DUMP = Variable("MKC_DUMP", "", "A folder that receives every stage of every compilation as text.")
CXX = Variable("CXX", "", "The C++ compiler for the CPU target. Empty: the first of g++, clang++, c++ on the path.")
DEADLINE = Variable("MKC_DEADLINE", "20", "Seconds a wait inside a kernel may take before it is reported as a hang.")
DEBUG = Variable("MKC_DEBUG", "0", "1 builds host kernels hardly optimised, with debug information.")
CHECK = Variable("MKC_CHECK", "1", "0 runs plans that nobody has proved free of races, hangs and stray accesses.")
DELAY = Variable("MKC_DELAY", "0", "1 builds kernels that lose time at random around waits and signals: a test of the plan's order.")
POISON = Variable("MKC_POISON", "0", "1 fills what a kernel has yet to write with NaN before each launch, so that reading it shows.")
TUNED = Variable("MKC_TUNED", "1", "0 plans and runs as if `mkc bench --tune` had never measured anything on this machine.")
KEEP = Variable("MKC_KEEP", "1", "0 traces and plans everything anew, and keeps nothing of it but kernels.")

VARIABLES = (TARGET, WORKERS, CACHE_DIR, DUMP, CXX, DEADLINE, DEBUG, CHECK, DELAY, POISON, TUNED, KEEP)


def target_name() -> str | None:
    """`cpu`, `cuda` or None for the machine's best."""
    value = TARGET.get()
    if value not in ("", "cpu", "cuda"):
        raise OptionError(f"MKC_TARGET={value!r} is not a target; use cpu or cuda, or leave it empty")
    return value or None


def workers() -> int | None:
    """The number of workers asked for, or None."""
    return _whole(WORKERS) if WORKERS.get() else None


def deadline_ns() -> int:
    """How long a wait may take, in nanoseconds."""
    try:
        seconds = float(DEADLINE.get())
    except ValueError:
        seconds = 0
    if not 0 < seconds < 1e6:
        raise OptionError(f"MKC_DEADLINE={DEADLINE.get()!r} is not a number of seconds")
    return int(seconds * 1e9)


def cache_dir() -> Path:
    """Where compiled artefacts are kept."""
    if CACHE_DIR.get():
        return _path(CACHE_DIR)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mkc"


def dump_dir() -> Path | None:
    """Where stages are written, if anywhere."""
    return _path(DUMP) if DUMP.get() else None


def debug() -> bool:
    return _is_on(DEBUG)


def delays() -> bool:
    return _is_on(DELAY)


def poison() -> bool:
    return _is_on(POISON)


def tuned() -> bool:
    """Whether what was measured on this machine counts."""
    return _is_on(TUNED)


def keeps() -> bool:
    """Whether what was traced and planned before on this machine is taken again."""
    return _is_on(KEEP)


def _is_on(variable: Variable) -> bool:
    return variable.get() not in ("", "0")


def _path(variable: Variable) -> Path:
    try:
        return Path(variable.get()).expanduser()
    except RuntimeError as error:  # a home that is not there
        raise OptionError(f"{variable.name}={variable.get()!r} is not a folder: {error}") from error


def checks() -> bool:
    """Whether plans are proved before they run."""
    return CHECK.get() != "0"


def _whole(variable: Variable) -> int:
    text = variable.get()
    if not re.fullmatch(r"[0-9]{1,4}", text) or not 1 <= int(text) <= 1024:
        raise OptionError(f"{variable.name}={text!r} is not a whole number from 1 to 1024")
    return int(text)
