"""Compilation -> a Kernel that runs the page of streaming workers on the host: the device code itself, without a GPU.

The headers are the page's own. Only functions that are one or a few instructions of PTX get another body, from the table
below; `machine.h` has what they call.
"""

import ctypes
import re
import subprocess
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from mkc.compiler import Compilation
from mkc.ir.graph import Kind
from mkc.ir.program import EVENT_STRIDE, PLACE, REPORT
from mkc.targets.kernel import UNTUNED, Tuning, entries, launch_words, pointers, raise_reported

HERE = Path(__file__).parent
WARPS = 16  # of a block
FLAGS = ("-std=c++20", "-O2", "-w", "-fno-strict-aliasing", "-shared", "-fPIC")

# By name, in the order of their definitions.
INSTRUCTIONS = {
    "sync": ["emulated::meet(7, 128);"],
    "team": ["return lane() / kTeamLanes;"],
    "broadcast": [
        "T& slot = reinterpret_cast<T&>(emulated::block().slot); if (lane() == 0) slot = value; sync(); value = slot; sync(); return value;"
    ],
    "load_acquire": ["emulated::look_again_later(); return *p;"],
    "load_relaxed": ["emulated::look_again_later(); return *p;"],
    "store_relaxed": ["*p = v;"],
    "store_release": ["*p = v;"],
    "add_release": ["*p += v;"],
    "fetch_add": ["const uint32 old = *p; *p += v; return old;"],
    "claim": ["return *p == 0 ? *p = 1 : false;"],
    "in_global": ["return p;"],
    "clock_ns": ["return ++emulated::now;"],
    "widen": [None, "emulated::refuse(\"float16\");"],
    "narrow": ["out.bits = emulated::narrowed(v);", "emulated::refuse(\"float16\");"],
    "inverse": ["return 1.0f / x;"],
    "scratch": ["return emulated::block().scratch;"],
    "exp_below": ["return ::exp2f(x * 1.44269504088896341f);"],
    "opaque": ["return v;"],
    "load_shared": ["return emulated::get<Quad>(a);"],
    "load_shared_four": ["return emulated::get<Four>(a);"],
    "load_shared_float": ["return emulated::get<float>(a);"],
    "load_shared_word": ["return emulated::get<uint32>(a);"],
    "load_acquire_shared": ["emulated::look_again_later(); return emulated::get<uint32>(a);"],
    "store_release_shared": ["emulated::put(a, v);"],
    "show_to_copies": [""],
    "load_shared_pair": ["return emulated::get<Pair>(a);"],
    "store_shared": ["emulated::put(a, v);"] * 5,
    "meet": ["emulated::meet(id, threads);"],
    "meet_any": ["return emulated::meet_any(id, threads, mine);"],
    "arrive": ["emulated::arrive(id, threads);"],
    "barriers_are_set": [""],
    "barrier_init": ["emulated::block().counted[b] = {count, count, 0, 0};"],
    "barrier_expect": ["emulated::expect(b, bytes);"],
    "barrier_arrive": ["emulated::count(b);"],
    "barrier_passed": ["emulated::look_again_later(); return emulated::has_passed(b, parity);"],
    "barrier_tested": ["return emulated::has_passed(b, parity);"],
    "barrier_wait": ["emulated::look_again_later(); emulated::pass(b, parity);"],
    "evict_first": ["return 0;"],
    "evict_last": ["return 1;"],
    "bulk_copy": ["emulated::copy(to, from, bytes, barrier);"] * 2,
    "copy_weights": ["emulated::refuse(\"a copy that this form of worker does not make\");"],
    "end_copies": ["emulated::refuse(\"a copy that this form of worker does not make\");"],
    "await_copies": ["emulated::refuse(\"a copy that this form of worker does not make\");"],
    "copy_quad": ["emulated::copy_quad(to, from);"],
    "copies_done": ["emulated::copies_done();"],
    "fetch_ahead": [""],
    "more_registers": [""],
    "fewer_registers": [""],
    "cycles": ["return emulated::now += 500;"],
    "multiply": ["const emulated::Product p(a.x, a.y, a.z, a.w, b0, b1); for (int i = 0; i < 4; ++i) c[i] += p.d[i];"],
    "multiply_upper": ["const emulated::Product p(a0, 0, a2, 0, b0, b1); c[0] += p.d[0], c[1] += p.d[1];"],
    "pair_of": ["return emulated::narrowed(high) << 16 | emulated::narrowed(low);"],
    "product": ["return emulated::products(a, b);"],
    "permuted": ["return __byte_perm(a, b, Selector);"],
    "exp2": ["return ::exp2f(x);"],
    "log2": ["return ::log2f(x);"],
    "load_pair": ["return emulated::read<Pair>(p);"],
    "load_single": ["return emulated::read<uint32>(p);"],
    "load_quad": ["return emulated::read<Quad>(p);"],
    "load_words": ["emulated::look_again_later(); return emulated::read<TwoWords>(p);"],
    "load_word": ["emulated::look_again_later(); return *p;"],
    "store_word": ["*p = v;"],
}  # fmt: skip

# Instructions in the middle of a function.
INLINE = {
    r'asm volatile\("ld\.shared\.v2\.b32 [^"]*" : "=r"\(([^()]*)\), "=r"\(([^()]*)\) : "r"\((.*)\) : "memory"\);':
        r"{ const uint64 two = emulated::get<uint64>(\3); \1 = static_cast<uint32>(two), \2 = static_cast<uint32>(two >> 32); }",
    r"extern __shared__ [^\n]* memory\[\];": "unsigned char* const memory = emulated::block().shared.data();",
}  # fmt: skip


def hosted(page: str) -> str:
    """The page as a library of the host."""
    for name, bodies in INSTRUCTIONS.items():
        if f"{name}(" not in page:  # a header that this page does without
            continue
        at = 0
        for body in bodies:
            begin, end = _body(page, name, at)
            made = page[begin:end] if body is None else f"{{ {body} }}"
            page, at = page[:begin] + made + page[end:], begin + len(made)
    for instruction, meaning in INLINE.items():
        page = re.sub(instruction, meaning, page)
    left = re.search(r"^(?!.*\"[=+]v\").*\basm\b[^\n]*[%{].*$", page, re.MULTILINE)  # but for what a CPU's headers say to theirs
    assert left is None, f"nobody says what this is on the host: {left and left[0].strip()}"
    return "\n".join([(HERE / "machine.h").read_text(), page, (HERE / "launch.h").read_text()])


def _body(page: str, name: str, start: int) -> tuple[int, int]:
    """Where the braces of a function's next definition begin and end."""
    found = re.compile(rf"^ *MKC_DEVICE [^;{{}}()]*\b{name}\(", re.MULTILINE).search(page, start)
    assert found, name
    begin = page.index("{", _closing(page, found.end(), "()"))
    return begin, _closing(page, begin + 1, "{}")


def _closing(page: str, at: int, pair: str) -> int:
    """Behind what closes the innermost pair that is open at this place."""
    depth = 1
    while depth:
        depth += (page[at] == pair[0]) - (page[at] == pair[1])
        at += 1
    return at


class Emulator:
    """A kernel of streaming workers on the host. Each launch holds other threads up, drawn from its number.

    The `late` warp of a block, if there is one, moves only when nobody else can.
    """

    def __init__(self, made: Compilation, folder: Path, tuning: Tuning = UNTUNED, late: tuple[int, int] | None = None) -> None:
        self.program, self.tuning, self.late = made.program, tuning, late
        source, library = folder / "page.cpp", folder / "page.so"
        source.write_text(hosted(made.source.complete))
        done = subprocess.run(["g++", *FLAGS, "-o", library, source], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[:4000]
        self.library = ctypes.CDLL(str(library))
        self.counters = np.zeros(self.program.num_counters * EVENT_STRIDE, np.uint32)
        self.uses = np.zeros(1, np.uint32)
        self.launches = 0

    def launch(self, addresses: Sequence[int], steps: Sequence[int], stream: int = 0) -> None:
        program, streams = self.program, self.program.streams
        assert streams is not None
        operands = pointers(program, addresses)
        report, progress = np.zeros(1, REPORT), np.zeros(program.num_workers + 1, PLACE)
        tables = dict(
            tasks=program.tasks, waits=program.waits, operands=operands, sections=program.sections, bounds=program.bounds,
            queue=program.queue, counters=self.counters, progress=progress, report=report, entries=entries(program, operands),
            streams=streams.records, stream_bounds=streams.bounds, uses=self.uses,
        )  # fmt: skip
        places = {name: table.ctypes.data for name, table in tables.items()}
        places["packed"] = next(a for a, slot in zip(addresses, program.slots, strict=True) if slot.kind is Kind.PACKED)
        words = launch_words(program, places, steps, deadline_ns=2**31, tuning=self.tuning)
        self.launches += 1
        late = -1 if self.late is None else self.late[0] * WARPS + self.late[1]
        status = self.library.launch(ctypes.c_void_p(words.ctypes.data), streams.shared_bytes, self.launches, late)
        raise_reported(program, report, progress, 2**31)
        assert status == 0, "the page is stuck: see what it printed"
