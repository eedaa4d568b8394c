"""NVIDIA GPUs as a target: the page built by NVRTC for one exact architecture, loaded and launched through CuPy."""

import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from types import ModuleType
from typing import Any

import numpy as np

from mkc import cache as files
from mkc import config
from mkc.errors import BuildError, TargetError
from mkc.forks import Lock
from mkc.ir.graph import Kind
from mkc.ir.program import ENTRY, EVENT_STRIDE, PLACE, REPORT, STAMP, Program, Words
from mkc.ir.target import Target
from mkc.passes.render import Source, code
from mkc.targets import tuning
from mkc.targets.kernel import Tuning, entries, launch_words, pointers, raise_reported, set_launch

ARCHITECTURES = ("sm_80", "sm_86", "sm_87", "sm_89", "sm_90a", "sm_100a", "sm_103a", "sm_120a", "sm_121a")
LANES = 256  # threads of a worker
FLAGS = (
    "-std=c++20",
    "-default-device",  # constexpr helpers without an annotation
    "-diag-suppress=177",  # a header's constant that this page does not use
    "--ptxas-options=-v",  # what Resources are read from
)
_INSTALL = 'pip install "mkc-compiler[cuda]"'
_WITHOUT_GPU = "use the target cpu, or name an architecture to compile without running"


# ---- what the passes need to know


@dataclass(frozen=True, slots=True)
class _Chip:
    """A GPU as the cost model sees it."""

    arch: str
    sms: int
    shared_bytes: int  # a block may use
    l2_bytes: int
    bytes_per_ns: float  # read from memory by all SMs together
    flops_per_ns: float  # of one SM, float32

    @property
    def ghz(self) -> float:
        """Cycles of an SM in a nanosecond."""
        return self.flops_per_ns / (2 * _cores(self.arch))

    @property
    def copies_in_bulk(self) -> bool:
        """Hopper was the first with copies that one thread begins for many bytes, and registers that change hands."""
        return int(re.sub(r"\D", "", self.arch)) >= 90


# One card of each architecture, for those that are not there to be asked. Bandwidths are 0.95 of the data sheet's.
_CARDS = {
    chip.arch: chip
    for chip in (
        _Chip("sm_80", 108, 163 << 10, 40 << 20, 1940.0, 180.0),  # A100, 80 GB
        _Chip("sm_86", 82, 99 << 10, 6 << 20, 890.0, 435.0),  # RTX 3090
        _Chip("sm_87", 16, 163 << 10, 4 << 20, 195.0, 333.0),  # Jetson AGX Orin
        _Chip("sm_89", 128, 99 << 10, 72 << 20, 960.0, 645.0),  # RTX 4090
        _Chip("sm_90a", 132, 227 << 10, 60 << 20, 4650.0, 507.0),  # H200, measured
        _Chip("sm_100a", 148, 227 << 10, 126 << 20, 7600.0, 475.0),  # B200
        _Chip("sm_103a", 148, 227 << 10, 126 << 20, 7600.0, 490.0),  # B300
        _Chip("sm_120a", 170, 99 << 10, 96 << 20, 1700.0, 615.0),  # RTX 5090
        _Chip("sm_121a", 48, 99 << 10, 24 << 20, 260.0, 620.0),  # GB10
    )
}


def target(device: int | None = None, arch: str | None = None, workers: int | None = None) -> Target:
    """A GPU's facts: of `device`, of the usual card of a named `arch`, or of the current device when neither is given.

    Times are first guesses, to be fitted to measurements. Raises TargetError: no CuPy, no such GPU, one too old.
    """
    chip = _card(arch) if device is None and arch is not None else _present(device)
    if arch not in (None, chip.arch):
        raise TargetError(f"device {device} is {chip.arch}, not {arch}; drop one of the two")
    return Target(
        name="cuda",
        arch=chip.arch,
        workers=workers or config.workers() or chip.sms,
        lanes=LANES,
        scratch_bytes=chip.shared_bytes,
        bytes_per_ns=chip.bytes_per_ns / chip.sms,
        flops_per_ns=chip.flops_per_ns,
        task_ns=600.0,
        event_ns=1200.0,
        cache_bytes=chip.l2_bytes,
        latency_ns=1000.0,
        streams=True,
        bulk_copies=chip.copies_in_bulk,
    )


def machine(device: int | None = None) -> str:
    """What a GPU of this machine is called."""
    with _explained("ask the GPU for its name"):
        cupy = _cupy()
        chosen = cupy.cuda.runtime.getDevice() if device is None else device
        name: bytes = cupy.cuda.runtime.getDeviceProperties(chosen)["name"]
    return name.decode()


def device_count() -> int:
    """How many GPUs this process can use: 0 without CuPy, driver or GPU."""
    try:
        return _device_count()
    except TargetError:
        return 0


def _card(arch: str) -> _Chip:
    if arch not in _CARDS:
        raise TargetError(
            f"mkc does not know the architecture {arch!r}; choose from {', '.join(ARCHITECTURES)}"
        )
    return _CARDS[arch]


def _present(device: int | None) -> _Chip:
    """A GPU of this machine, asked."""
    cupy, count = _cupy(), _device_count()
    if device is not None and not 0 <= device < count:
        raise TargetError(f"there is no GPU {device}; this machine has {count}, numbered from 0")
    with _explained("ask the GPU what it is"):
        gpu = cupy.cuda.Device(device)
        major, minor = divmod(int(gpu.compute_capability), 10)
        facts = gpu.attributes
    if major < 8:
        raise TargetError(
            f"GPU {gpu.id} has compute capability {major}.{minor}; mkc needs 8.0 or newer (Ampere)"
        )
    arch = f"sm_{major}{minor}{'a' if major >= 9 else ''}"
    memory_hz, clock_ghz = 1e3 * facts.get("MemoryClockRate", 0), 1e-6 * facts.get("ClockRate", 0)
    read = 0.95 * 2 * memory_hz * facts.get("GlobalMemoryBusWidth", 0) / 8 / 1e9
    return _Chip(
        arch=arch,
        sms=facts["MultiProcessorCount"],
        shared_bytes=facts["MaxSharedMemoryPerBlockOptin"],
        l2_bytes=facts.get("L2CacheSize", 0),
        bytes_per_ns=read or 1000.0,
        flops_per_ns=2 * _cores(arch) * clock_ghz or 400.0,
    )


def _cores(arch: str) -> int:
    """Float32 units of an SM."""
    return 64 if arch == "sm_80" else 128


def _device_count() -> int:
    try:
        count = int(_cupy().cuda.runtime.getDeviceCount())
    except RuntimeError as error:
        raise TargetError(f"CUDA finds no usable GPU ({error}); {_WITHOUT_GPU}") from error
    if count == 0:
        raise TargetError(f"this machine has no NVIDIA GPU; {_WITHOUT_GPU}")
    return count


@cache
def _cupy() -> ModuleType:
    return _needed("cupy")


@cache
def _nvrtc() -> ModuleType:
    """CuPy's binding of the compiler, with the library behind it found."""
    nvrtc = _needed("cupy_backends.cuda.libs.nvrtc")
    try:
        nvrtc.getVersion()
    except (OSError, RuntimeError) as error:
        raise TargetError(f"CuPy does not find NVRTC, which comes with {_INSTALL}: {error}") from error
    return nvrtc


def _needed(module: str) -> ModuleType:
    try:
        return import_module(module)
    except ImportError as error:
        raise TargetError(f"the CUDA target needs CuPy: {_INSTALL} ({error})") from error


@contextmanager
def _explained(what: str) -> Iterator[None]:
    """CUDA's errors as a TargetError: what could not be done, in CUDA's words, and the way out when memory is short."""
    cuda = _cupy().cuda
    try:
        yield
    except (MemoryError, cuda.runtime.CUDARuntimeError, cuda.driver.CUDADriverError) as error:
        short = isinstance(error, MemoryError) or error.status == 2  # out of memory, in both of CUDA's APIs
        way_out = ". The GPU's memory is full: free some of it, or run a smaller model" if short else ""
        raise TargetError(f"CUDA could not {what}: {error}{way_out}") from error


# ---- building a page


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
    key = "\n".join([product, str(_nvrtc().getVersion()), *flags, page])
    return files.kept("cuda", key, lambda: _compile(product, page, flags))


def _compile(product: str, text: str, flags: Sequence[str]) -> bytes:
    nvrtc = _nvrtc()
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
    log: str = _nvrtc().getProgramLog(program)
    return log.replace("\0", "").strip()


def _complaints(log: str) -> str:
    """The log from its first error on, to a readable length."""
    first = re.search(r"^.*\berror\b", log, re.MULTILINE)
    return log[first.start() if first else 0 :][:4000]


# ---- running it


@dataclass(frozen=True, slots=True)
class _Loaded:
    """A build of the page on a GPU."""

    cubin: Cubin
    function: Any
    lanes: int


class CudaKernel:
    """A page loaded onto a GPU. Every launch ends with its stream drained, so one set of tables serves all launches.

    `shared_bytes` is dynamic shared memory for each block. Raises BuildError, and TargetError when the GPU has no room.
    """

    def __init__(self, program: Program, source: Source, device: int = 0, shared_bytes: int = 0) -> None:
        self.program = program
        self.source = source
        self.device = device
        self.shared_bytes = program.streams.shared_bytes if program.streams else shared_bytes
        self._chip = _present(device)
        _require_likeness(program, self._chip)
        self._lock = Lock()
        self._traced: _Loaded | None = None
        self._launches = 0  # which seeds the delays of test builds
        self._addresses: tuple[int, ...] = ()
        self._packed = next((i for i, slot in enumerate(program.slots) if slot.kind is Kind.PACKED), None)
        self.tuning = self._first_tuning()
        self._loaded = self._load(trace=False)
        with self._using("hold the tables of the plan"):
            self._pinned = _pinned(np.zeros(len(program.operands), np.uint64))
            self._pinned_entries = _pinned(np.zeros(len(program.queue) if program.streams else 0, ENTRY))
            self._report = _pinned(np.zeros(1, REPORT))  # written by the GPU only when a wait fails
            self._tables = {name: _uploaded(table) for name, table in self._host_tables().items()}
            self._places = {name: table.data.ptr for name, table in self._tables.items()}
            self._places["report"] = self._report.ctypes.data  # pinned memory has one address on both sides
            self._words = launch_words(self.program, self._places, [0] * len(program.sections), 0)
            self._parameters = np.array([self._words.ctypes.data], np.uintp)  # of the kernel: one, by the place of its value
            _cupy().cuda.runtime.deviceSynchronize()

    @property
    def cubin(self) -> Cubin:
        return self._loaded.cubin

    @property
    def gpu(self) -> str:
        """What the GPU is called, as tunings are kept under it."""
        return machine(self.device)

    def keep_tuning(self) -> None:
        """Later kernels of this program start with the tuning that this one has now."""
        tuning.keep(self.program, self.gpu, self.tuning)

    def _first_tuning(self) -> Tuning:
        return (tuning.recalled(self.program, self.gpu) if self.program.streams else None) or self.untuned

    @property
    def untuned(self) -> Tuning:
        """What a kernel of this program starts with where nothing was kept for it."""
        if not self.program.streams:
            return Tuning()
        chip = self._chip
        return tuning.guessed(self.program.streams, chip.bytes_per_ns / chip.sms, chip.ghz)

    def launch(self, addresses: Sequence[int], steps: Sequence[int], stream: int = 0) -> None:
        """Run all sections on a CUDA stream; returns when the last worker has left.

        Raises MegakernelHang, after which the kernel can be launched again, and TargetError.
        """
        with self._lock, self._using("run the kernel"):
            self._run(self._loaded, addresses, steps, stream)

    def trace(self, addresses: Sequence[int], steps: Sequence[int]) -> Words:
        """One launch with time stamps, after all that the GPU was given before.

        They are read from %globaltimer: nanoseconds, the same on every SM, but on some GPUs in steps of about 1 µs.
        """
        cupy = _cupy()
        with self._lock:
            self._traced = self._traced or self._load(trace=True)
            with self._using("trace the kernel"):
                room = max(steps) * len(self.program.queue)  # every entry of a queue is one task a step
                stamps = cupy.zeros(room * STAMP.itemsize, np.uint8)
                self._clear("progress")  # whose last word counts stamps
                self._run(self._traced, addresses, steps, 0, stamps.data.ptr)
                copied: Words = stamps.get().view(STAMP)
                return copied[copied["done"] > 0]

    def _run(
        self, loaded: _Loaded, addresses: Sequence[int], steps: Sequence[int], stream: int, stamps: int = 0
    ) -> None:
        deadline, cuda = config.deadline_ns(), _cupy().cuda
        self._launches += 1
        set_launch(self._words, self.program, steps, deadline, self._launches, self.tuning)
        self._words["stamps"], self._words["packed"] = stamps, addresses[self._packed] if self._packed is not None else 0
        try:
            self._point(addresses, stream)
            # residency was checked, and what CuPy does besides for a launch the GPU would wait for
            grid, block = (self.program.num_workers, 1, 1), (loaded.lanes, 1, 1)
            cuda.driver.launchCooperativeKernel(
                loaded.function.ptr, *grid, *block, self.shared_bytes, stream, self._parameters.ctypes.data
            )
            cuda.runtime.streamSynchronize(stream)
        except BaseException:
            with suppress(RuntimeError):  # after a fault on the GPU nothing works: its context is lost
                self._restore()
            raise
        if self._report["failed"][0]:
            report, progress = self._report.copy(), self._progress()
            self._restore()
            raise_reported(self.program, report, progress, deadline)

    def _point(self, addresses: Sequence[int], stream: int) -> None:
        """Bring the operands' addresses to the GPU if they changed. The stream of every earlier copy has been drained."""
        if tuple(addresses) == self._addresses:
            return
        runtime = _cupy().cuda.runtime
        self._addresses = ()
        self._pinned[:] = pointers(self.program, addresses)
        if self.program.streams:
            self._pinned_entries[:] = entries(self.program, self._pinned)
        for name, table in (("operands", self._pinned), ("entries", self._pinned_entries)):
            if table.nbytes:
                runtime.memcpyAsync(self._places[name], table.ctypes.data, table.nbytes, runtime.memcpyHostToDevice, stream)
        self._addresses = tuple(addresses)

    def _restore(self) -> None:
        """As before the first launch, whatever the last one left behind."""
        _cupy().cuda.runtime.deviceSynchronize()
        self._clear("counters", "progress", *(["uses"] if self.program.streams else []))
        for address, slot in zip(self._addresses, self.program.slots, strict=False):
            if slot.kind is Kind.WORDS:
                _cupy().cuda.runtime.memset(address, 0, slot.nbytes)
        _cupy().cuda.runtime.deviceSynchronize()
        self._addresses = ()
        self._report[:] = 0

    def _clear(self, *names: str) -> None:
        """Zero tables, and wait for it: streams need not be ordered after the one used here."""
        for name in names:
            self._tables[name].data.memset(0, self._tables[name].nbytes)
        _cupy().cuda.runtime.deviceSynchronize()

    def _progress(self) -> Words:
        words: Words = self._tables["progress"].get().view(PLACE)
        return words

    def _host_tables(self) -> dict[str, Words]:
        p = self.program
        return dict(
            tasks=p.tasks, waits=p.waits, sections=p.sections, bounds=p.bounds, queue=p.queue,
            operands=np.zeros(len(p.operands), np.uint64),
            counters=np.zeros(p.num_counters * EVENT_STRIDE, np.uint32),
            progress=np.zeros(p.num_workers + 1, PLACE),
            **self._stream_tables(),
        )  # fmt: skip

    def _stream_tables(self) -> dict[str, Words]:
        streams = self.program.streams
        if streams is None:
            return {}
        return dict(
            entries=np.zeros(len(self.program.queue), ENTRY), streams=streams.records, stream_bounds=streams.bounds,
            uses=np.zeros(1, np.uint32),
        )  # fmt: skip

    def _load(self, trace: bool) -> _Loaded:
        cubin = compile_cubin(self.source.complete, self._chip.arch, trace, config.delays())
        cuda = _cupy().cuda
        with self._using("load the kernel"):
            module = cuda.function.Module()
            module.load(cubin.image)
            function = module.get_function("megakernel")
            driver, pointer = cuda.driver, function.ptr
            lanes = driver.funcGetAttribute(driver.CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK, pointer)
            if self.shared_bytes:
                most = driver.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
                driver.funcSetAttribute(pointer, most, self.shared_bytes)
            blocks = driver.occupancyMaxActiveBlocksPerMultiprocessor(pointer, lanes, self.shared_bytes)
        self._require_room(blocks, lanes, cubin.resources)
        return _Loaded(cubin, function, lanes)

    def _require_room(self, blocks: int, lanes: int, taken: Resources) -> None:
        """All workers must run at once: one that waits for one that never starts waits for ever."""
        room, workers = blocks * self._chip.sms, self.program.num_workers
        if workers > room:
            raise TargetError(
                f"{workers} workers do not fit on this GPU at once: {room} do, {blocks} on each of {self._chip.sms} SMs "
                f"({lanes} threads of {taken.registers} registers, {taken.shared_bytes + self.shared_bytes} bytes of shared "
                f"memory); compile with workers={room} or fewer (MKC_WORKERS)"
            )

    @contextmanager
    def _using(self, what: str) -> Iterator[None]:
        """This kernel's GPU as the current one."""
        with _explained(what), _cupy().cuda.Device(self.device):
            yield


def _require_likeness(program: Program, chip: _Chip) -> None:
    """A plan for another GPU runs on one that has no less: the page is built for whoever is there."""
    streams = program.streams
    if streams and ((streams.paced and not chip.copies_in_bulk) or streams.shared_bytes > chip.shared_bytes):
        loaders = ", and loaders with bulk copies," if streams.paced else ""
        raise TargetError(
            f"the plan is for another GPU: {streams.shared_bytes} bytes of shared memory{loaders} are more than {chip.arch} has; "
            "compile for the GPU that is there"
        )


def _uploaded(table: Words) -> Any:
    """The bytes of a table on the GPU."""
    return _cupy().asarray(np.ascontiguousarray(table).view(np.uint8))


def _pinned(like: Words) -> Words:
    """A copy in host memory that the GPU reads and writes at the same address."""
    memory = _cupy().cuda.alloc_pinned_memory(max(like.nbytes, 1))
    array = np.frombuffer(memory, like.dtype, like.size)
    array[:] = like
    return array
