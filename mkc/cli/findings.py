"""This machine -> Finding. Versions, compilers, GPUs, the cache; and what will work, found out by doing it."""

import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import metadata

import numpy as np

from mkc import cache, config, targets
from mkc.compiler import compile_graphs
from mkc.errors import MkcError, TargetError
from mkc.inspect.text import count, size
from mkc.ir.builder import Builder
from mkc.ir.dtype import DType
from mkc.ir.expr import Arg, Call, Const
from mkc.ir.graph import Graph, Kind
from mkc.targets import cpu, cuda, nvrtc


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the report. `works` is None for a plain fact."""

    what: str
    text: str
    works: bool | None = None


def facts() -> Iterator[Finding]:
    """What is installed and set."""
    yield Finding("python", f"{platform.python_version()} at {sys.executable}")
    yield Finding(
        "system",
        f"{platform.system()} {platform.machine()}, {count(len(os.sched_getaffinity(0)), 'usable CPU')}",
    )
    for module in ("torch", "numpy", "transformers", "cupy"):
        yield Finding(module, _version(module))
    yield Finding("compiler", _said(_compiler))
    yield Finding("GPUs", _said(_gpus))
    yield Finding("cache", _said(_cache))
    given = [f"{v.name}={v.get()}" for v in config.VARIABLES if v.name in os.environ]
    yield Finding("set", ", ".join(given) or "no environment variable of mkc")


def checks() -> Iterator[Finding]:
    """What works, each tried with a kernel of one task. The first is the CPU target."""
    yield _tried("cpu", _run_on_cpu)
    yield _tried("cuda", _run_on_cuda)
    yield _tried("pages for GPUs", _compile_for_gpus)
    yield _tried("language models", _language_models)


def _tried(what: str, attempt: Callable[[], str]) -> Finding:
    try:
        return Finding(what, attempt(), True)
    except MkcError as error:
        return Finding(what, str(error).splitlines()[0], False)
    except Exception as error:  # noqa: BLE001  whatever goes wrong is what we are here to say
        return Finding(what, f"{type(error).__name__}: {error}", False)


def _said(tell: Callable[[], str]) -> str:
    try:
        return tell()
    except MkcError as error:
        return str(error).splitlines()[0]


# ---- facts


def _version(module: str) -> str:
    for distribution in metadata.packages_distributions().get(module, []):
        return f"{metadata.version(distribution)}{'' if distribution == module else f' ({distribution})'}"
    return "not installed"


def _compiler() -> str:
    path = cpu.compiler()
    said = subprocess.run([path, "--version"], capture_output=True, text=True, check=False).stdout
    return f"{said.splitlines()[0] if said else 'unknown version'} at {path}"


def _gpus() -> str:
    found = [cuda.target(device) for device in range(cuda.device_count())]
    return ", ".join(f"{t.arch} with {t.workers} SMs" for t in found) or "none that CUDA and CuPy can use"


def _cache() -> str:
    sizes = [path.stat().st_size for path in cache.folder().iterdir() if path.is_file()]
    return f"{cache.folder()}, {size(sum(sizes))} in {count(len(sizes), 'file')}"


# ---- checks


def _run_on_cpu() -> str:
    start = time.perf_counter()
    made = compile_graphs([_graph()], targets.named("cpu"))
    x = np.arange(8, dtype=np.float32)
    y = np.zeros_like(x)
    arena = cpu.allocate(64)
    places = {"x": x.ctypes.data, "out0": y.ctypes.data}
    addresses = [places.get(slot.name, arena.ctypes.data) for slot in made.program.slots]
    targets.build(made.program, made.source, made.target).launch(addresses, [1])
    if not np.array_equal(y, 2 * x + 1):
        raise TargetError(
            f"a kernel built by {cpu.compiler()} computed {y.tolist()} for 2x+1 of {x.tolist()}"
        )
    return f"compiled and ran a kernel on {count(made.target.workers, 'worker')} in {time.perf_counter() - start:.2f} s"


def _run_on_cuda() -> str:
    made = compile_graphs([_graph()], targets.named("cuda"))
    targets.build(made.program, made.source, made.target)
    return f"built and loaded a kernel for {made.target.arch}, {count(made.target.workers, 'worker')}"


def _compile_for_gpus() -> str:
    made = compile_graphs([_graph()], cuda.target(arch="sm_90a", workers=132))
    cubin = nvrtc.compile_cubin(made.source.complete, made.target.arch)
    return f"NVRTC compiles them; a kernel for {made.target.arch} took {cubin.resources.registers} registers"


def _language_models() -> str:
    missing = [
        name for name in ("transformers", "tokenizers", "safetensors") if _version(name) == "not installed"
    ]
    if missing:
        raise TargetError(f'{" and ".join(missing)} missing: pip install "mkc-compiler[hf]"')
    return f"transformers {_version('transformers')}"


def _graph() -> Graph:
    """y = 2 x + 1, for 8 numbers."""
    builder = Builder("doctor")
    x = builder.input("x", (8,), DType.F32, Kind.INPUT)
    expr = Call("add", (Call("mul", (Arg(0), Const(2.0))), Const(1.0)))
    return builder.finish((builder.emit("elementwise", (x,), (8,), DType.F32, expr=expr),))
