"""Every example runs, on this machine, as its first lines say."""

import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"
ARGUMENTS = {
    "01_elementwise.py": [],
    "02_mlp.py": [],
    "03_attention.py": [],
    "04_decode_speed.py": ["--steps", "4", "--repeats", "1", "--dtype", "bfloat16"],
    "adder/demo.py": ["--sums", "12", "--quick", "--out"],
}


def test_every_example_is_tested() -> None:
    lessons = {path.name for path in EXAMPLES.glob("*.py")}
    assert lessons == {name for name in ARGUMENTS if "/" not in name}


@pytest.mark.parametrize("name", ARGUMENTS)
def test_an_example_runs(name: str, tmp_path: Path) -> None:
    arguments = [*ARGUMENTS[name], *([str(tmp_path / "out")] if name.endswith("demo.py") else [])]
    done = subprocess.run([sys.executable, EXAMPLES / name, *arguments], capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.strip()


def test_the_adder_answers_a_question(tmp_path: Path) -> None:
    command = [sys.executable, EXAMPLES / "adder" / "demo.py", "--prompt", "1234+5678="]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert "1234+5678=6912" in done.stdout, done.stderr[-2000:]
