"""The host as a target: the page built by the system's C++ compiler, a thread for each worker."""

import ctypes
import os
import platform
import re
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np

from mkc import cache as files
from mkc import config
from mkc.errors import BuildError, TargetError
from mkc.forks import Lock
from mkc.ir.program import EVENT_STRIDE, PLACE, REPORT, STAMP, Program, Words
from mkc.ir.target import Target
from mkc.passes.render import Source, code
from mkc.paths import TEMPLATES
from mkc.targets.kernel import launch_words, pointers, raise_reported

FLAGS = ("-std=c++20", "-O3", "-march=native", "-fno-math-errno", "-fno-trapping-math", "-fPIC", "-shared", "-pthread")
OLDEST_CLANG = 14
DEBUG_FLAGS = ("-std=c++20", "-O1", "-g", "-fno-omit-frame-pointer", "-fPIC", "-shared", "-pthread")


def target(workers: int | None = None) -> Target:
    """This machine: one worker for each CPU the process may use, or as many as asked for."""
    count = workers or config.workers() or len(os.sched_getaffinity(0))
    return Target(
        name="cpu",
        arch=platform.machine(),
        workers=count,
        lanes=1,
        scratch_bytes=32 * 1024,
        bytes_per_ns=20.0,
        flops_per_ns=20.0,
        task_ns=80.0,
        event_ns=250.0,
    )


def machine() -> str:
    """What this machine is called: the processor's name, where Linux gives one, and how many CPUs the process may use."""
    return f"{processor()}, {len(os.sched_getaffinity(0))} CPUs"


def processor() -> str:
    return _cpuinfo("model name").partition(": ")[2] or "unknown CPU"


class CpuKernel:
    """A page loaded into this process."""

    def __init__(self, program: Program, source: Source) -> None:
        self.program = program
        self.source = source
        self._lock = Lock()
        self._launches = 0  # which seeds the delays of test builds
        self._worker = _load(code(source.text), _flags(tracing=False)).mkc_worker
        self._counters = np.zeros((program.num_counters, EVENT_STRIDE), np.uint32)
        self._progress = np.zeros(program.num_workers + 1, PLACE)
        self._report = np.zeros(1, REPORT)
        self._addresses: tuple[int, ...] = ()
        self._operands = np.zeros(len(program.operands), np.uint64)

    def launch(self, addresses: Sequence[int], steps: Sequence[int], stream: int = 0) -> None:
        """Run all sections; returns when the last worker has left. There are no streams on the host."""
        self._run(self._worker, addresses, steps, None)

    def trace(self, addresses: Sequence[int], steps: Sequence[int]) -> Words:
        worker = _load(code(self.source.text), _flags(tracing=True)).mkc_worker
        stamps = np.zeros(_executions(self.program, steps), STAMP)
        self._run(worker, addresses, steps, stamps)
        return stamps[: int(self._progress["task"][-1])]

    def _run(self, worker: object, addresses: Sequence[int], steps: Sequence[int], stamps: Words | None) -> None:
        with self._lock:
            if tuple(addresses) != self._addresses:
                self._operands[:] = pointers(self.program, addresses)
                self._addresses = tuple(addresses)
            self._progress[:] = 0
            self._launches += 1
            deadline = config.deadline_ns()
            words = launch_words(self.program, self._tables(stamps), steps, deadline, self._launches)
            self._run_pool(worker, words)
            if self._report["failed"][0]:
                report = self._report.copy()
                self._report[:] = 0
                self._counters[:] = 0  # a worker that never came has not left either
                raise_reported(self.program, report, self._progress, deadline)

    def _run_pool(self, worker: object, words: Words) -> None:
        _pool().mkc_pool_run(worker, words.ctypes.data_as(ctypes.c_void_p), self.program.num_workers)

    def _tables(self, stamps: Words | None) -> dict[str, int]:
        p = self.program
        tables = dict(
            tasks=p.tasks, waits=p.waits, sections=p.sections, bounds=p.bounds, queue=p.queue, operands=self._operands,
            counters=self._counters, progress=self._progress, report=self._report,
        )  # fmt: skip
        addresses = {name: table.ctypes.data for name, table in tables.items()}
        return addresses if stamps is None else {**addresses, "stamps": stamps.ctypes.data}


def _executions(program: Program, steps: Sequence[int]) -> int:
    """How many tasks a launch runs at most."""
    total = 0
    for section, count in zip(program.sections, steps, strict=True):
        queues = 1 if section["num_tasks"] else program.num_workers
        first = int(section["first_queue"])
        total += count * int(program.bounds[first + queues] - program.bounds[first])
    return total


def compiler() -> str:
    """The C++ compiler: $CXX, or the first that is there."""
    asked = config.CXX.get()
    found = next((path for name in ([asked] if asked else ["g++", "clang++", "c++"]) if (path := shutil.which(name))), None)
    if found is None:
        wanted = f"$CXX ({asked})" if asked else "g++, clang++ or c++"
        raise TargetError(f"the CPU target needs a C++ compiler, and {wanted} is not on the path; install one or set CXX")
    old = re.search(r"clang version (\d+)", _version(found))
    if old and int(old.group(1)) < OLDEST_CLANG:
        raise TargetError(
            f"{found} is clang {old.group(1)}; the CPU target needs g++ 12 or clang {OLDEST_CLANG}: install one or set CXX"
        )
    return found


@cache
def _version(path: str) -> str:
    return subprocess.run([path, "--version"], capture_output=True, text=True, check=False).stdout


@cache
def _cpuinfo(*fields: str) -> str:
    """The first line of Linux's description of the processor that begins so, or nothing."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    return next((line for line in lines if line.startswith(fields)), "")


def _features() -> str:
    """What -march=native means here, since a cache may be shared between machines."""
    return _cpuinfo("flags", "Features") or platform.processor() or platform.machine()


def build(text: str, flags: Sequence[str]) -> bytes:
    """A shared library from C++ text, from the cache when it was built before. Raises BuildError."""
    cxx = compiler()
    key = "\n".join([cxx, _version(cxx), _features(), " ".join(flags), text, _headers()])
    return files.kept("host", key, lambda: _compile(cxx, text, flags))


def _compile(cxx: str, text: str, flags: Sequence[str]) -> bytes:
    with tempfile.TemporaryDirectory(prefix="mkc-") as folder:
        page, library = Path(folder, "page.cpp"), Path(folder, "page.so")
        page.write_text(text)
        command = [cxx, *flags, f"-I{TEMPLATES}", str(page), "-o", str(library)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise BuildError(f"{' '.join(command)} failed:\n{done.stderr[:4000]}")
        return library.read_bytes()


@cache
def _headers() -> str:
    return "".join(path.read_text() for path in sorted(TEMPLATES.rglob("*.cuh")))


def _flags(tracing: bool) -> tuple[str, ...]:
    base = DEBUG_FLAGS if config.debug() else FLAGS
    return (*base, f"-DMKC_TRACE={str(tracing).lower()}", f"-DMKC_DELAY={str(config.delays()).lower()}")


@cache
def _load(text: str, flags: tuple[str, ...]) -> ctypes.CDLL:
    return _open(build(text, flags))


@cache
def _pool() -> ctypes.CDLL:
    """The threads that all kernels of this process share."""
    library = _open(build((TEMPLATES / "mkc/host/pool.cpp").read_text(), FLAGS))
    library.mkc_pool_run.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint]
    library.mkc_pool_run.restype = None
    return library


def _open(library: bytes) -> ctypes.CDLL:
    """Loaded from a private copy, so that what runs is what was checked."""
    with tempfile.NamedTemporaryFile(prefix="mkc-", suffix=".so") as file:
        file.write(library)
        file.flush()
        return ctypes.CDLL(file.name)


def allocate(nbytes: int) -> Words:
    """Uninitialised memory on a cache line of its own."""
    raw = np.empty(nbytes + 64, np.uint8)
    shift = -raw.ctypes.data % 64
    return raw[shift : shift + nbytes]


__all__ = ["CpuKernel", "allocate", "build", "compiler", "target"]
