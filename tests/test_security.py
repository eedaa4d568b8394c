"""What docs/security.md promises of the source itself: nothing unpickles, evaluates or downloads, and trust is asked for by name."""

import ast
import inspect
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

import mkc
from mkc import cache
from mkc.targets import cpu

PACKAGE = Path(mkc.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))
MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve", "socket", "urllib", "requests", "http"}
CALLS = {"eval", "exec", "compile_command", "system", "popen", "torch.load", "torch.save", "torch.jit.load", "np.load", "numpy.load"}


def imports(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module.partition(".")[0]


def calls(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func)
            if any(k.arg == "shell" for k in node.keywords):
                yield "a shell"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_nothing_is_unpickled_evaluated_or_fetched(path: Path) -> None:
    tree = ast.parse(path.read_text())
    assert not MODULES & set(imports(tree))
    assert not (CALLS | {"a shell"}) & set(calls(tree))


@pytest.mark.parametrize("path", [p for p in FILES if "from_pretrained(" in p.read_text()], ids=lambda path: path.name)
def test_every_model_is_loaded_through_the_one_place_that_guards_it(path: Path) -> None:
    assert path.name in ("loading.py", "lm.py", "subject.py")
    for node in ast.walk(ast.parse(path.read_text())):
        if path.name == "loading.py" and isinstance(node, ast.Call) and ast.unparse(node.func).endswith(".from_pretrained"):
            assert "given" in ast.unparse(node)
            assert "AutoModel" not in ast.unparse(node.func) or "use_safetensors=True" in ast.unparse(node)


def test_trust_is_off_unless_asked_for() -> None:
    assert inspect.signature(mkc.CausalLM.from_pretrained).parameters["trust_remote_code"].default is False


def test_kept_kernels_are_for_their_owner_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MKC_CACHE_DIR", str(tmp_path / "a" / "kernels"))
    cpu.build('extern "C" int answer() { return 42; }', cpu.FLAGS)
    assert stat.S_IMODE(cache.folder().stat().st_mode) == 0o700
