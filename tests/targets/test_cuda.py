"""The CUDA target: pages compile for every architecture without a GPU; with one they run, and say so when they cannot."""

import dataclasses
import shutil
import sys
from itertools import pairwise

import numpy as np
import pytest
from devices import on_gpu
from layouts import layout_claims

from mkc.compiler import Compilation, compile_graphs
from mkc.errors import BuildError, MegakernelHang, TargetError
from mkc.ir.builder import Builder
from mkc.ir.dtype import Array, DType
from mkc.ir.expr import Arg, Call
from mkc.ir.graph import Graph, Kind
from mkc.passes.render import lay_in
from mkc.targets import _cupy, cuda, nvrtc
from mkc.targets.cuda_kernel import CudaKernel

cupy = pytest.importorskip("cupy")
WIDTHS = (96, 1000, 96)


@pytest.fixture(autouse=True)
def _own_cache(monkeypatch, tmp_path_factory):
    monkeypatch.setenv("MKC_CACHE_DIR", str(tmp_path_factory.getbasetemp() / "cache"))


def mlp() -> Graph:
    """y = x + W1 gelu(W0 x), run as often as asked."""
    b = Builder("mlp")
    h = x = b.input("x", (4, WIDTHS[0]), DType.F32)
    for layer, (k, n) in enumerate(pairwise(WIDTHS)):
        w = b.input(f"w{layer}", (n, k), DType.F32, Kind.PARAM)
        last = layer == len(WIDTHS) - 2
        extras, epilogue = ((x,), Call("add", (Arg(0), Arg(1)))) if last else ((), Call("gelu", (Arg(0),)))
        h = b.emit("linear", (h, w, *extras), (4, n), epilogue=epilogue)
    return b.finish((h,), loops=True)


def compiled(policy: str = "static", **asked) -> Compilation:
    """The model for a GPU on which everything is worth cutting small."""
    target = cuda.target(**asked)
    return compile_graphs(
        [mlp()], dataclasses.replace(target, task_ns=1.0, event_ns=1.0, bytes_per_ns=9.0), policy
    )


def page(arch: str = "sm_90a") -> str:
    return compiled(arch=arch).source.complete


# ---- without a GPU


@pytest.mark.parametrize("arch", cuda.ARCHITECTURES)
def test_a_page_compiles_for_every_architecture_without_spilling(arch):
    built = nvrtc.compile_cubin(page(arch), arch)
    assert built.image.startswith(b"\x7fELF")
    assert 16 < built.resources.registers <= 255
    assert (built.resources.spill_bytes, built.resources.stack_bytes) == (0, 0)


def test_a_trace_build_is_another_build():
    assert (
        nvrtc.compile_cubin(page(), "sm_90a", trace=True).image != nvrtc.compile_cubin(page(), "sm_90a").image
    )


def test_a_page_is_built_once_and_its_log_is_kept(monkeypatch):
    first = nvrtc.compile_cubin(page(), "sm_90a")
    monkeypatch.setattr(nvrtc, "_compile", lambda *_: pytest.fail("built again"))
    assert nvrtc.compile_cubin(page(), "sm_90a") == first
    assert "registers" in first.log


def test_a_broken_page_raises_the_words_of_the_compiler():
    with pytest.raises(BuildError, match=r'identifier "nonsense" is undefined'):
        nvrtc.compile_cubin(page() + "\n__device__ int f() { return nonsense; }\n", "sm_90a")


def test_resources_add_up_over_functions():
    log = """
    ptxas info    : Function properties for helper
    ptxas         .     16 bytes stack frame, 8 bytes spill stores, 12 bytes spill loads
    ptxas info    : Function properties for megakernel
    ptxas         .     32 bytes stack frame, 4 bytes spill stores, 4 bytes spill loads
    ptxas info    : Used 80 registers, used 1 barriers, 8 bytes smem, 472 bytes cmem[0]
    """
    assert nvrtc.Resources.of(log) == nvrtc.Resources(
        registers=80, spill_bytes=12, stack_bytes=32, shared_bytes=8
    )


def test_ptx_names_its_architecture():
    assert ".target sm_90a" in nvrtc.ptx(page(), "sm_90a")


@pytest.mark.skipif(not any(map(shutil.which, ("nvdisasm", "cuobjdump"))), reason="no disassembler")
def test_sass_shows_that_an_acquire_empties_the_first_cache():
    assert "CCTL.IVALL" in nvrtc.sass(nvrtc.compile_cubin(page(), "sm_90a").image)


def test_sass_without_a_disassembler_says_what_to_install(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda _: None)
    monkeypatch.setattr(nvrtc, "_packaged", lambda _: None)
    with pytest.raises(TargetError, match="nvdisasm or cuobjdump"):
        nvrtc.sass(b"")


def test_a_named_architecture_needs_no_gpu():
    target = cuda.target(arch="sm_90a")
    assert (target.workers, target.lanes, target.scratch_bytes) == (132, 256, 232448)
    assert cuda.target(arch="sm_80", workers=7).workers == 7


def test_more_teams_than_scratch_memory_holds_are_refused():
    target = dataclasses.replace(cuda.target(arch="sm_90a"), lanes=512)
    with pytest.raises(BuildError, match="no room for so many teams"):
        nvrtc.compile_cubin(compile_graphs([mlp()], target).source.complete, "sm_90a")


def test_an_unknown_architecture_is_refused_with_the_known_ones():
    with pytest.raises(TargetError, match=r"sm_70.*sm_80, sm_86"):
        cuda.target(arch="sm_70")


def test_without_cupy_the_way_out_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", None)
    _cupy.cupy.cache_clear()
    assert cuda.device_count() == 0
    with pytest.raises(TargetError, match=r'pip install "mkc-compiler\[cuda\]"'):
        cuda.target()


def test_nvrtc_lays_out_the_structs_as_numpy_does():
    nvrtc.compile_cubin(lay_in(layout_claims()), "sm_80")


# ---- with one


class Bench:
    """The model on GPU 0 with memory of its own."""

    def __init__(self, **asked) -> None:
        self.program = (made := compiled(device=0, **asked)).program
        self.kernel = CudaKernel(made.program, made.source, 0)
        rng = np.random.default_rng(0)
        self.memory = {
            slot.name: cupy.asarray(rng.standard_normal(slot.nbytes // 4, np.float32) / 4)
            for slot in self.program.slots
        }
        self.addresses = [self.memory[slot.name].data.ptr for slot in self.program.slots]
        self.good = self.run()

    def run(self, steps: int = 1) -> Array:
        self.memory["out0"].fill(0)
        cupy.cuda.runtime.deviceSynchronize()
        self.kernel.launch(self.addresses, [steps])
        return self.memory["out0"].get()

    def expected(self) -> Array:
        from mkc.ops._functions import FUNCTIONS

        h = x = self.memory["x"].get().reshape(4, -1)
        for layer, (k, n) in enumerate(pairwise(WIDTHS)):
            h = h @ self.memory[f"w{layer}"].get().reshape(n, k).T
            h = h + x if layer == len(WIDTHS) - 2 else FUNCTIONS["gelu"](h)
        return h.ravel()

    def rewrite(self, **tables: Array) -> None:
        """Other words for the kernel that is loaded."""
        for name, words in tables.items():
            self.kernel._tables[name].set(np.ascontiguousarray(words).view(np.uint8))
        cupy.cuda.runtime.deviceSynchronize()

    def hang(self, monkeypatch) -> str:
        """The report of a launch that fails twice the same way; what was broken is made whole again, and the result right."""
        good = self.good
        with monkeypatch.context() as impatient:
            impatient.setenv("MKC_DEADLINE", "0.2")
            for _ in range(2):
                with pytest.raises(MegakernelHang, match=r"gave up after 0\.2 s") as caught:
                    self.run()
        self.rewrite(**{name: getattr(self.program, name) for name in ("tasks", "bounds", "queue")})
        assert all(np.array_equal(self.run(), good) for _ in range(3))
        print(caught.value)
        return str(caught.value)


@on_gpu
@pytest.mark.parametrize("policy", ["static", "dynamic"])
def test_a_model_runs_as_numpy_computes_it(policy):
    bench = Bench(policy=policy)
    np.testing.assert_allclose(bench.run(), bench.expected(), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(bench.run(steps=5), bench.expected(), rtol=1e-4, atol=1e-4)


@on_gpu
def test_the_same_run_gives_the_same_bits():
    bench = Bench()
    first = bench.run()
    assert all(np.array_equal(bench.run(), first) for _ in range(100))


@on_gpu
def test_a_launch_follows_its_addresses_and_its_stream():
    bench = Bench()
    bench.run()
    moved = cupy.zeros_like(bench.memory["out0"])
    addresses = [
        moved.data.ptr if slot.name == "out0" else a
        for slot, a in zip(bench.program.slots, bench.addresses, strict=True)
    ]
    stream = cupy.cuda.Stream(non_blocking=True)
    stream.synchronize()
    bench.kernel.launch(addresses, [1], stream.ptr)
    assert np.array_equal(moved.get(), bench.memory["out0"].get())


@on_gpu
@pytest.mark.parametrize("policy", ["static", "dynamic"])
def test_a_lost_signal_is_reported_and_the_kernel_runs_again(policy, monkeypatch):
    bench = Bench(policy=policy)
    lost = int(np.flatnonzero(bench.program.tasks["signal"] >= 0)[0])
    broken = bench.program.tasks.copy()
    broken["signal"][lost] = -1
    bench.rewrite(tasks=broken)
    assert f"task {lost}, {bench.program.names[lost]}" in bench.hang(monkeypatch)


@on_gpu
def test_a_worker_that_leaves_early_is_named(monkeypatch):
    bench = Bench(workers=16)
    first, last = (int(b) for b in bench.program.bounds[:2])
    bounds, queue = bench.program.bounds.copy(), bench.program.queue.copy()
    queue[first:] = np.roll(queue[first:], first - last)
    bounds[1:] -= last - first
    bench.rewrite(bounds=bounds, queue=queue)
    assert "worker 0 has taken up no task" in bench.hang(monkeypatch)


@on_gpu
def test_a_block_that_never_comes_is_named_and_leaves_nothing_behind(monkeypatch):
    bench = Bench(workers=16)
    start = bench.kernel._loaded.function
    with monkeypatch.context() as fewer:
        less = lambda grid, *given, **named: start((grid[0] - 1,), *given, **named)  # noqa: E731
        fewer.setattr(bench.kernel, "_loaded", dataclasses.replace(bench.kernel._loaded, function=less))
        fewer.setenv("MKC_DEADLINE", "0.2")
        with pytest.raises(MegakernelHang, match="had 15 of 16 signals"):
            bench.run()
    assert all(np.array_equal(bench.run(), bench.good) for _ in range(3))


@on_gpu
def test_a_grid_that_cannot_be_resident_is_refused_and_the_next_one_runs():
    bench = Bench()
    with pytest.raises(TargetError, match="5000 workers do not fit"):
        Bench(workers=5000)
    assert np.array_equal(bench.run(), bench.good)


@on_gpu
def test_a_full_gpu_is_a_target_error():
    made = compiled(device=0)
    pool = cupy.get_default_memory_pool()
    pool.free_all_blocks()
    pool.set_limit(size=pool.total_bytes() + 1)
    try:
        with pytest.raises(TargetError, match="memory is full"):
            CudaKernel(made.program, made.source, 0)
    finally:
        pool.set_limit(size=0)


@on_gpu
def test_a_trace_stamps_every_task_in_order():
    bench = Bench()
    stamps = bench.kernel.trace(bench.addresses, [3])
    assert np.array_equal(np.bincount(stamps["task"]), np.full(len(bench.program.tasks), 3))
    assert (stamps["taken"] <= stamps["ready"]).all()
    assert (stamps["ready"] <= stamps["done"]).all()
    assert len(bench.kernel.trace(bench.addresses, [1])) == len(bench.program.tasks)


@on_gpu
def test_a_device_is_asked_for_its_facts():
    target = cuda.target(0)
    assert target.arch.startswith("sm_")
    assert target.workers == cupy.cuda.Device(0).attributes["MultiProcessorCount"]
    assert target.scratch_bytes >= 48 << 10
    with pytest.raises(TargetError, match="there is no GPU 99"):
        cuda.target(99)


@on_gpu
@pytest.mark.parametrize("wrong", [-51, 50, 2**40])
def test_an_index_outside_is_reported_and_the_next_run_is_right(wrong):
    import torch

    import mkc

    table, ids = torch.randn(50, 100).cuda(), torch.tensor([3, 7]).cuda()
    fast = mkc.compile(lambda i, t: torch.nn.functional.embedding(i, t), (ids, table), fallback="error")
    with pytest.raises(mkc.OutOfRangeError, match=rf"index {wrong} is outside of a dimension of 50"):
        fast(torch.tensor([3, wrong]).cuda(), table)
    assert torch.equal(fast(ids, table), table[ids])
