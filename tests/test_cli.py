"""The command line: what it writes and says, and how it refuses."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from mkc import cli
from mkc.cli import findings
from mkc.errors import MkcError, TargetError

ADDER = Path(__file__).parent.parent / "examples" / "adder" / "model"
MODELS = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.lift = nn.Linear(8, 16)
    def forward(self, x):
        return torch.relu(self.lift(x))

def small():
    return Net().eval(), torch.zeros(2, 8)

def cut():
    return (lambda x: torch.special.i0(x * 2) + 1), torch.ones(3)

def training():
    return Net(), torch.zeros(2, 8)

def broken():
    raise ValueError("no weights")

def alone():
    return Net()
"""


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / "models.py"
    path.write_text(MODELS)
    return path


def mkc(*arguments: object) -> Result:
    return CliRunner().invoke(cli.app, list(map(str, arguments)))


def refusal(*arguments: object) -> str:
    """What is said when an error of mkc ends the command."""
    result = mkc(*arguments)
    assert result.exit_code == 1
    assert "Traceback" not in result.output
    assert result.stderr.startswith("mkc: ")
    return result.stderr.removeprefix("mkc: ").strip()


# ---- inspect


def test_inspect_writes_every_stage_and_a_timeline(models: Path, tmp_path: Path) -> None:
    result = mkc("inspect", f"{models}:small", "-o", tmp_path / "out", "--workers", 2)
    assert result.exit_code == 0, result.output
    written = {path.name for path in (tmp_path / "out").iterdir()}
    assert written >= {
        "1-graph.txt",
        "8-program.txt",
        "9-page.cpp",
        "explain.txt",
        "graph.svg",
        "timeline.html",
    }
    assert json.loads((tmp_path / "out" / "timeline.json").read_text())["traceEvents"]
    assert "9-page.cpp" in result.stdout


def test_inspect_plans_for_a_gpu_that_is_not_here(models: Path, tmp_path: Path) -> None:
    result = mkc("inspect", f"{models}:small", "-o", tmp_path, "--target", "cuda", "--arch", "sm_80")
    assert result.exit_code == 0, result.output
    assert "no timeline: it was planned for sm_80" in result.stdout
    assert "__global__" in (tmp_path / "9-page.cu").read_text()


def test_inspect_gives_every_kernel_of_a_cut_model_a_folder(models: Path, tmp_path: Path) -> None:
    result = mkc("inspect", f"{models}:cut", "-o", tmp_path)
    assert result.exit_code == 0, result.output
    assert (tmp_path / "kernel-0" / "9-page.cpp").is_file()
    assert (tmp_path / "kernel-1" / "graph.svg").is_file()
    assert "no timeline" in result.stdout


# ---- explain


def test_explain_says_what_becomes_of_a_model(models: Path) -> None:
    result = mkc("explain", f"{models}:small")
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith("1 kernel for cpu")
    assert "nothing runs in PyTorch" in result.stdout


def test_explain_takes_the_policy(models: Path) -> None:
    assert mkc("explain", f"{models}:small", "--policy", "dynamic").exit_code == 0


# ---- refusals


@pytest.mark.parametrize(
    ("model", "says"),
    [
        (":nothing", "has no function 'nothing'; it has small, cut, training, broken, alone"),
        (":training", "Net is in training mode; call .eval()"),
        (":broken", "line 22: broken() raised ValueError: no weights"),
        (":alone", "must return (module, example_inputs), not Net"),
        ("", "needs the name of a function in it"),
    ],
)
def test_a_model_that_cannot_be_made_is_refused_in_a_sentence(models: Path, model: str, says: str) -> None:
    assert says in refusal("explain", f"{models}{model}")


@pytest.mark.parametrize("model", ["nowhere.py:make", "./no/such/folder", "a b c"])
def test_what_is_not_there_is_refused_in_a_sentence(model: str) -> None:
    assert "there is no f" in refusal("explain", model)


def test_an_architecture_needs_the_target_it_belongs_to(models: Path) -> None:
    assert "say --target cuda too" in refusal("explain", f"{models}:small", "--arch", "sm_80")


def test_an_unknown_architecture_is_refused_with_those_that_there_are(models: Path) -> None:
    said = refusal("explain", f"{models}:small", "--target", "cuda", "--arch", "sm_1")
    assert "sm_90a" in said


@pytest.mark.parametrize(
    "arguments",
    [
        ("explain", "m", "--speed"),
        ("explain", "m", "--target", "tpu"),
        ("explain", "m", "--workers", "0"),
        ("fly",),
        ("inspect", "m"),
    ],
)
def test_unknown_or_missing_options_are_refused(arguments: tuple[str, ...]) -> None:
    result = mkc(*arguments)
    assert result.exit_code == 2
    assert "Error: " in result.stderr


def test_a_language_model_is_planned_from_its_config_alone(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    (tmp_path / "config.json").write_bytes((ADDER / "config.json").read_bytes())
    result = mkc("explain", tmp_path, "--target", "cuda", "--arch", "sm_90a")
    assert result.exit_code == 0, result.output
    assert "1 kernel for cuda sm_90a" in result.stdout
    assert result.stdout.count("floor") == 2  # prompt and decode


# ---- run


class FakeLM:
    compilation = None

    def generate(self, prompt: str, max_new_tokens: int) -> str:
        return f"{prompt} answered in {max_new_tokens}"


def test_run_prints_the_answer_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli, "language_model", lambda *_, **__: FakeLM())
    result = mkc("run", "folder", "--prompt", "1+1", "--max-new-tokens", 3)
    assert (result.exit_code, result.stdout) == (0, "1+1 answered in 3\n")


def test_run_passes_on_what_a_model_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise MkcError("no such model")

    monkeypatch.setattr(cli, "language_model", refuse)
    assert refusal("run", "folder", "--prompt", "1+1") == "no such model"


@pytest.mark.slow
def test_run_continues_a_text_with_a_model_from_a_folder() -> None:
    result = mkc("run", ADDER, "--prompt", "12+34=", "--max-new-tokens", 4, "--workers", 2)
    assert result.exit_code == 0, result.output
    assert result.stdout.strip().isdigit()


@pytest.mark.slow
def test_inspect_times_a_language_model_step_by_step(tmp_path: Path) -> None:
    result = mkc("inspect", ADDER, "-o", tmp_path, "--prompt", "12+34=", "--workers", 2)
    assert result.exit_code == 0, result.output
    assert (tmp_path / "graph.prompt.svg").is_file()
    assert "decode step 0" in (tmp_path / "timeline.html").read_text()


# ---- doctor


def test_doctor_finds_that_the_cpu_target_works() -> None:
    result = mkc("doctor")
    assert result.exit_code == 0, result.output
    assert "yes  cpu" in result.stdout
    assert "torch" in result.stdout


def test_doctor_fails_when_the_cpu_target_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise TargetError("no compiler\nat all")

    monkeypatch.setattr(findings.targets, "build", broken)
    result = mkc("doctor")
    assert result.exit_code == 1
    assert "no   cpu" in result.stdout
    assert "at all" not in result.stdout
