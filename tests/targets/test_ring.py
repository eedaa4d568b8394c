"""The ring that lanes fill themselves, on the host: every weight comes in its turn, however late copies arrive, and none too many."""

import subprocess
from pathlib import Path

from mkc.paths import TEMPLATES
from mkc.targets import cpu

HARNESS = Path(__file__).with_name("ring_sm80.cpp")


def test_weights_come_in_their_turn_and_no_copy_outlives_the_kernel(tmp_path: Path) -> None:
    done = ran((TEMPLATES / "mkc/ring_sm80.cuh").read_text(), tmp_path)
    assert done.returncode == 0, done.stdout


def test_a_copy_that_is_not_awaited_is_noticed(tmp_path: Path) -> None:
    ring = (TEMPLATES / "mkc/ring_sm80.cuh").read_text()
    assert ran(ring.replace("kRingSlots - 1>", "kRingSlots>"), tmp_path).returncode == 1


def ran(ring: str, folder: Path) -> "subprocess.CompletedProcess[str]":
    """The harness brings its own machine, so what the header includes is empty."""
    for name in ("mkc/arch/sm80.cuh", "mkc/block.cuh"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    (folder / "ring.cuh").write_text(ring)
    program, flags = folder / "ring", ("-std=c++20", "-O1", f"-I{folder}", '-DRING="ring.cuh"', "-fsanitize=address,undefined")
    subprocess.run([cpu.compiler(), *flags, str(HARNESS), "-o", str(program)], check=True)
    return subprocess.run([str(program)], capture_output=True, text=True, check=False)
