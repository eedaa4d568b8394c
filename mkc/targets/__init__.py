"""Where kernels run. A target builds a page and launches it; these are the only effects of the compiler."""

from collections.abc import Iterator, Mapping
from dataclasses import replace

from mkc.errors import OptionError
from mkc.ir.program import Program
from mkc.ir.target import Target
from mkc.passes.render import Source
from mkc.targets import cpu, cuda, kept, nvrtc
from mkc.targets.cuda_kernel import CudaKernel
from mkc.targets.kernel import Kernel


def named(name: str, device: int | None = None, workers: int | None = None) -> Target:
    """The facts of the target `cpu` or `cuda` (of a device). Raises TargetError when the machine lacks it."""
    return cuda.target(device, workers=workers) if name == "cuda" else cpu.target(workers)


def at_hand(name: str, device: int | None = None, workers: int | None = None) -> Target:
    """The same, with what `mkc bench --tune` has measured on this machine, under whose name choices are looked for."""
    found = named(name, device, workers)
    machine = machine_name(name, device)
    costs = kept.costs(machine)
    return replace(costs.on(found) if costs else found, machine=machine)


def machine_name(name: str, device: int | None = None) -> str:
    """Under which measurements on this machine are kept."""
    return cuda.machine(device) if name == "cuda" else cpu.machine()


def build(program: Program, source: Source, target: Target, device: int | None = None) -> Kernel:
    """The kernel, from the cache when the page was built before. Raises BuildError, TargetError."""
    if target.name == "cuda":
        return CudaKernel(program, source, device or 0)
    return cpu.CpuKernel(program, source)


class Assembly(Mapping[str, bytes | str]):
    """What the compiler made of a page, by name, each made when it is asked for."""

    def __init__(self, source: Source, target: Target) -> None:
        self._source, self._target = source, target

        self._names = ("cubin", "ptx", "sass") if target.name == "cuda" else ("library", "assembly")

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def __getitem__(self, name: str) -> bytes | str:
        text, arch = self._source.complete, self._target.arch
        match name if name in self._names else "":
            case "cubin":
                return nvrtc.compile_cubin(text, arch).image
            case "ptx":
                return nvrtc.ptx(text, arch)
            case "sass":
                return nvrtc.sass(nvrtc.compile_cubin(text, arch).image)
            case "library":
                return cpu.build(self._source.text, cpu.FLAGS)
            case "assembly":
                return cpu.build(self._source.text, (*cpu.FLAGS, "-S")).decode()
        raise OptionError(f"there is no {name!r} for {self._target.name}, only {', '.join(self._names)}")
