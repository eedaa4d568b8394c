"""Where kernels run. A target builds a page and launches it; these are the only effects of the compiler."""

from mkc.ir.program import Program
from mkc.ir.target import Target
from mkc.passes.render import Source
from mkc.targets import cpu, cuda
from mkc.targets.kernel import Kernel


def named(name: str, device: int | None = None, workers: int | None = None) -> Target:
    """The facts of the target `cpu` or `cuda` (of a device). Raises TargetError when the machine lacks it."""
    return cuda.target(device, workers=workers) if name == "cuda" else cpu.target(workers)


def build(program: Program, source: Source, target: Target, device: int | None = None) -> Kernel:
    """The kernel, from the cache when the page was built before. Raises BuildError, TargetError."""
    if target.name == "cuda":
        return cuda.CudaKernel(program, source, device or 0)
    return cpu.CpuKernel(program, source)
