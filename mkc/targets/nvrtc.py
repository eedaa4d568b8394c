"""Page -> Cubin. A page built by NVRTC for one exact architecture, and what came of it: resources, PTX, SASS."""

import re
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from mkc import cache as files
from mkc.errors import BuildError, TargetError
from mkc.passes.render import code
from mkc.targets._cupy import nvrtc_binding

FLAGS = (
    "-std=c++20",
    "-default-device",  # constexpr helpers without an annotation
    "-diag-suppress=177",  # a header's constant that this page does not use
    "--ptxas-options=-v",  # what Resources are read from
)


@dataclass(frozen=True, slots=True)
class Resources:
    """What ptxas says a kernel takes: registers and stack of a thread, shared memory of a block."""

    registers: int
    spill_bytes: int  # stored for lack of registers
    stack_bytes: int
    shared_bytes: int  # static

    @staticmethod
    def of(log: str) -> "Resources":
        """From the log of a build; functions that were not inlined count as well."""

        def numbers(pattern: str) -> list[int]:
            return [int(n) for n in re.findall(pattern, log)]

        return Resources(
            registers=max(numbers(r"Used (\d+) registers"), default=0),
            spill_bytes=sum(numbers(r"(\d+) bytes spill stores")),
            stack_bytes=max(numbers(r"(\d+) bytes stack frame"), default=0),
            shared_bytes=max(numbers(r"(\d+) bytes smem"), default=0),
        )


@dataclass(frozen=True, slots=True)
class Cubin:
    """Machine code for one architecture, and the log of its build."""

    image: bytes
    log: str

    @property
    def resources(self) -> Resources:
        return Resources.of(self.log)


def compile_cubin(text: str, arch: str, trace: bool = False, delays: bool = False) -> Cubin:
    """A complete page built for exactly `arch`, from the cache when it was built before. Raises BuildError."""
    log, _, image = _built("getCUBIN", text, arch, trace, delays).partition(b"\0")
    return Cubin(image, log.decode())


def ptx(text: str, arch: str) -> str:
    """The same page as PTX, the assembly of no machine in particular. Raises BuildError."""
    _, _, product = _built("getPTX", text, arch).partition(b"\0")
    return product.rstrip(b"\0").decode()


def sass(image: bytes) -> str:
    """A cubin disassembled. Raises TargetError without nvdisasm or cuobjdump."""
    with tempfile.NamedTemporaryFile(prefix="mkc-", suffix=".cubin") as file:
        file.write(image)
        file.flush()
        command = [*_disassembler(), file.name]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise TargetError(f"{' '.join(command)} failed: {done.stderr.strip()[:1000]}")
    return done.stdout


def _disassembler() -> tuple[str, str]:
    for name, option in (("nvdisasm", "-c"), ("cuobjdump", "-sass")):
        if path := shutil.which(name) or _packaged(name):
            return path, option
    raise TargetError(
        "SASS needs nvdisasm or cuobjdump, and neither is on the path; they come with the CUDA toolkit, "
        'or with pip install "cuda-toolkit[nvdisasm]"'
    )


def _packaged(tool: str) -> str | None:
    """Where an NVIDIA package or toolkit that is not on the path keeps a tool."""
    try:
        found: str | None = import_module("cuda.pathfinder").find_nvidia_binary_utility(tool)
    except (ImportError, AttributeError):  # AttributeError: a pathfinder from before it looked for tools
        return None
    return found


def _built(product: str, text: str, arch: str, trace: bool = False, delays: bool = False) -> bytes:
    """The log, a zero byte, and what NVRTC's `product` gives."""
    asked = {"MKC_TRACE": trace, "MKC_DELAY": delays}
    flags = (*FLAGS, f"-arch={arch}", *(f"-D{name}={str(on).lower()}" for name, on in asked.items()))
    page = code(text)
    key = "\n".join([product, str(nvrtc_binding().getVersion()), *flags, page])
    return files.kept("cuda", key, lambda: _compile(product, page, flags))


def _compile(product: str, text: str, flags: Sequence[str]) -> bytes:
    nvrtc = nvrtc_binding()
    program = nvrtc.createProgram(text, "megakernel.cu", (), ())
    try:
        nvrtc.compileProgram(program, flags)
        made: bytes = getattr(nvrtc, product)(program)
        log = _log(program)
    except nvrtc.NVRTCError as error:
        said = _complaints(_log(program))
        raise BuildError(f"NVRTC {' '.join(flags)} refused the page ({error}):\n{said}") from error
    finally:
        nvrtc.destroyProgram(program)
    return log.encode() + b"\0" + made + b"\0"  # CuPy drops the last byte of a cubin, which is a zero


def _log(program: Any) -> str:
    log: str = nvrtc_binding().getProgramLog(program)
    return log.replace("\0", "").strip()


def _complaints(log: str) -> str:
    """The log from its first error on, to a readable length."""
    first = re.search(r"^.*\berror\b", log, re.MULTILINE)
    return log[first.start() if first else 0 :][:4000]
