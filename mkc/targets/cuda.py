"""NVIDIA GPUs as the passes see them: that of this machine, asked, or the usual card of an architecture."""

import re
from dataclasses import dataclass

from mkc import config
from mkc.errors import TargetError
from mkc.ir.target import Target
from mkc.targets._cupy import cupy, explained

ARCHITECTURES = ("sm_80", "sm_86", "sm_87", "sm_89", "sm_90a", "sm_100a", "sm_103a", "sm_120a", "sm_121a")
LANES = 256  # threads of a worker
_WITHOUT_GPU = "use the target cpu, or name an architecture to compile without running"


@dataclass(frozen=True, slots=True)
class Chip:
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


# One card of each architecture, for those that are not there to be asked. Bandwidths are 0.95 of the data sheet's, caches what it says.
_CARDS = {
    chip.arch: chip
    for chip in (
        Chip("sm_80", 108, 163 << 10, 40 << 20, 1940.0, 180.0),  # A100, 80 GB
        Chip("sm_86", 82, 99 << 10, 6 << 20, 890.0, 435.0),  # RTX 3090
        Chip("sm_87", 16, 163 << 10, 4 << 20, 195.0, 333.0),  # Jetson AGX Orin
        Chip("sm_89", 128, 99 << 10, 72 << 20, 960.0, 645.0),  # RTX 4090
        Chip("sm_90a", 132, 227 << 10, 60 << 20, 4650.0, 507.0),  # H200, measured
        Chip("sm_100a", 148, 227 << 10, 126 << 20, 7600.0, 475.0),  # B200
        Chip("sm_103a", 148, 227 << 10, 126 << 20, 7600.0, 490.0),  # B300
        Chip("sm_120a", 170, 99 << 10, 96 << 20, 1700.0, 615.0),  # RTX 5090
        Chip("sm_121a", 48, 99 << 10, 24 << 20, 260.0, 620.0),  # GB10
    )
}


def target(device: int | None = None, arch: str | None = None, workers: int | None = None) -> Target:
    """A GPU's facts: of `device`, of the usual card of a named `arch`, or of the current device when neither is given.

    Times are first guesses, to be fitted to measurements. Raises TargetError: no CuPy, no such GPU, one too old.
    """
    chip = _card(arch) if device is None and arch is not None else present(device)
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
    with explained("ask the GPU for its name"):
        runtime = cupy().cuda.runtime
        chosen = runtime.getDevice() if device is None else device
        name: bytes = runtime.getDeviceProperties(chosen)["name"]
    return name.decode()


def device_count() -> int:
    """How many GPUs this process can use: 0 without CuPy, driver or GPU."""
    try:
        return _device_count()
    except TargetError:
        return 0


def _card(arch: str) -> Chip:
    if arch not in _CARDS:
        raise TargetError(
            f"mkc does not know the architecture {arch!r}; choose from {', '.join(ARCHITECTURES)}"
        )
    return _CARDS[arch]


def present(device: int | None) -> Chip:
    """A GPU of this machine, asked."""
    count = _device_count()
    if device is not None and not 0 <= device < count:
        raise TargetError(f"there is no GPU {device}; this machine has {count}, numbered from 0")
    with explained("ask the GPU what it is"):
        gpu = cupy().cuda.Device(device)
        major, minor = divmod(int(gpu.compute_capability), 10)
        facts = gpu.attributes
    if major < 8:
        raise TargetError(
            f"GPU {gpu.id} has compute capability {major}.{minor}; mkc needs 8.0 or newer (Ampere)"
        )
    arch = f"sm_{major}{minor}{'a' if major >= 9 else ''}"
    memory_hz, clock_ghz = 1e3 * facts.get("MemoryClockRate", 0), 1e-6 * facts.get("ClockRate", 0)
    read = 0.95 * 2 * memory_hz * facts.get("GlobalMemoryBusWidth", 0) / 8 / 1e9
    return Chip(
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
        count = int(cupy().cuda.runtime.getDeviceCount())
    except RuntimeError as error:
        raise TargetError(f"CUDA finds no usable GPU ({error}); {_WITHOUT_GPU}") from error
    if count == 0:
        raise TargetError(f"this machine has no NVIDIA GPU; {_WITHOUT_GPU}")
    return count
