"""CuPy and the compiler that it binds, found when they are first needed, and their errors in words."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib import import_module
from types import ModuleType

from mkc.errors import TargetError

_INSTALL = 'pip install "mkc-compiler[cuda]"'


@cache
def cupy() -> ModuleType:
    return _needed("cupy")


@cache
def nvrtc_binding() -> ModuleType:
    """CuPy's binding of the compiler, with the library behind it found."""
    binding = _needed("cupy_backends.cuda.libs.nvrtc")
    try:
        binding.getVersion()
    except (OSError, RuntimeError) as error:
        raise TargetError(f"CuPy does not find NVRTC, which comes with {_INSTALL}: {error}") from error
    return binding


def _needed(module: str) -> ModuleType:
    try:
        return import_module(module)
    except ImportError as error:
        raise TargetError(f"the CUDA target needs CuPy: {_INSTALL} ({error})") from error


@contextmanager
def explained(what: str) -> Iterator[None]:
    """CUDA's errors as a TargetError: what could not be done, in CUDA's words, and the way out when memory is short."""
    cuda = cupy().cuda
    try:
        yield
    except (MemoryError, cuda.runtime.CUDARuntimeError, cuda.driver.CUDADriverError) as error:
        short = isinstance(error, MemoryError) or error.status == 2  # out of memory, in both of CUDA's APIs
        way_out = ". The GPU's memory is full: free some of it, or run a smaller model" if short else ""
        raise TargetError(f"CUDA could not {what}: {error}{way_out}") from error
