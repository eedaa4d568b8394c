"""Program, Source -> CudaKernel. A page loaded onto a GPU and launched through CuPy."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import numpy as np

from mkc import config
from mkc.errors import TargetError
from mkc.forks import Lock
from mkc.ir.graph import Kind
from mkc.ir.program import ENTRY, EVENT_STRIDE, PLACE, REPORT, STAMP, Program, Words
from mkc.passes.render import Source
from mkc.targets import tuning
from mkc.targets._cupy import cupy, explained
from mkc.targets.cuda import Chip, machine, present
from mkc.targets.kernel import Tuning, entries, launch_words, pointers, raise_reported, set_launch
from mkc.targets.nvrtc import Cubin, Resources, compile_cubin


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
        self._chip = present(device)
        require_likeness(program, self._chip)
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
            cupy().cuda.runtime.deviceSynchronize()

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
        with self._lock:
            self._traced = self._traced or self._load(trace=True)
            with self._using("trace the kernel"):
                room = max(steps) * len(self.program.queue)  # every entry of a queue is one task a step
                stamps = cupy().zeros(room * STAMP.itemsize, np.uint8)
                self._clear("progress")  # whose last word counts stamps
                self._run(self._traced, addresses, steps, 0, stamps.data.ptr)
                copied: Words = stamps.get().view(STAMP)
                return copied[copied["done"] > 0]

    def _run(
        self, loaded: _Loaded, addresses: Sequence[int], steps: Sequence[int], stream: int, stamps: int = 0
    ) -> None:
        deadline, cuda = config.deadline_ns(), cupy().cuda
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
        runtime = cupy().cuda.runtime
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
        cupy().cuda.runtime.deviceSynchronize()
        self._clear("counters", "progress", *(["uses"] if self.program.streams else []))
        for address, slot in zip(self._addresses, self.program.slots, strict=False):
            if slot.kind is Kind.WORDS:
                cupy().cuda.runtime.memset(address, 0, slot.nbytes)
        cupy().cuda.runtime.deviceSynchronize()
        self._addresses = ()
        self._report[:] = 0

    def _clear(self, *names: str) -> None:
        """Zero tables, and wait for it: streams need not be ordered after the one used here."""
        for name in names:
            self._tables[name].data.memset(0, self._tables[name].nbytes)
        cupy().cuda.runtime.deviceSynchronize()

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
        cuda = cupy().cuda
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
        with explained(what), cupy().cuda.Device(self.device):
            yield


def require_likeness(program: Program, chip: Chip) -> None:
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
    return cupy().asarray(np.ascontiguousarray(table).view(np.uint8))


def _pinned(like: Words) -> Words:
    """A copy in host memory that the GPU reads and writes at the same address."""
    memory = cupy().cuda.alloc_pinned_memory(max(like.nbytes, 1))
    array = np.frombuffer(memory, like.dtype, like.size)
    array[:] = like
    return array
