"""Small kernels to look at, and stamps as a run of them would leave."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import pytest

from mkc.compiler import Compilation, compile_graphs
from mkc.ir.builder import Builder
from mkc.ir.dtype import DType
from mkc.ir.expr import Arg, Call, Const
from mkc.ir.graph import Graph, Kind
from mkc.ir.program import STAMP, Words
from mkc.ir.target import Target
from mkc.ops.linear import product

TWO = Target("cpu", "x86_64", 2, 1, 32 * 1024, 20.0, 20.0, 80.0, 250.0)
MANY = Target("cuda", "sm_90a", 132, 256, 227 << 10, 35.0, 507.0, 600.0, 1200.0)


def mlp_graph(layers: int = 2, width: int = 96, name: str = "mlp") -> Graph:
    """x [3, width], layers of linear and relu, each at a path of its own."""
    b = Builder(name)
    x = b.input("x", (3, width), DType.F32)
    for i in range(layers):
        b.path, b.dtype = f"layers.{i}", DType.F32
        w = b.input(f"w{i}", (width, width), DType.F32, Kind.PARAM)
        y = product(b, x, w)
        x = b.emit("elementwise", (y,), y.shape, expr=Call("maximum", (Arg(0), Const(0.0))))
    return b.finish((x,))


def counter_graph() -> Graph:
    """A state that every step adds to."""
    b = Builder("counter")
    x, state = b.input("x", (64,), DType.F32), b.input("state", (64,), DType.F32, Kind.STATE)
    b.append("elementwise", (state, x), (state,), expr=Call("add", (Arg(0), Arg(1))))
    return replace(b.finish(()), loops=True)


@pytest.fixture(scope="session")
def mlp() -> Compilation:
    return compile_graphs([mlp_graph()], TWO)


@pytest.fixture(scope="session")
def deep() -> Compilation:
    """Enough layers for memory to be used again."""
    return compile_graphs([mlp_graph(layers=5)], TWO)


@pytest.fixture(scope="session")
def wide() -> Compilation:
    return compile_graphs([mlp_graph(layers=4, width=4096)], MANY)


@pytest.fixture(scope="session")
def two_sections() -> Compilation:
    return compile_graphs([mlp_graph(name="prompt"), mlp_graph(3, name="decode")], TWO)


@pytest.fixture(scope="session")
def counter() -> Compilation:
    return compile_graphs([counter_graph()], TWO)


Stamped = Callable[[Compilation, Sequence[int]], Words]


@pytest.fixture(scope="session")
def stamped() -> Stamped:
    """Every task of every step, 100 ns each after 10 ns of waiting, round the workers."""

    def run(compilation: Compilation, steps: Sequence[int]) -> Words:
        stamps, first, now = [], 0, 5_000_000_000
        for section, count in zip(compilation.sections, steps, strict=True):
            tasks = len(section.tasks.tasks)
            for number in range(count * tasks):
                worker = number % compilation.target.workers
                at = now + number // compilation.target.workers * 120
                stamps.append((worker, first + number % tasks, at, at + 10, at + 110))
            now, first = stamps[-1][-1] + 50, first + tasks
        return np.array(stamps, STAMP)

    return run
