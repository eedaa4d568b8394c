"""MODEL on the command line -> Subject. A Hugging Face folder or a factory in a Python file, compiled and ready to be timed."""

import re
import sys
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from importlib.util import module_from_spec, spec_from_file_location
from inspect import isfunction
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

from mkc.compiler import Compilation, compile_graphs
from mkc.errors import ModelError, OptionError, TargetError
from mkc.explain import looked_at
from mkc.frontend.module import Compiled, options
from mkc.ir.program import Words
from mkc.ir.target import Target
from mkc.targets import cuda

DEFAULT_ARCH = "sm_90a"  # planned for where no GPU can be asked
TargetName = Literal["cpu", "cuda"]


@dataclass(frozen=True, slots=True)
class Subject:
    """A model's kernels, what stays in PyTorch, and how to run it with stamps, or why that is not possible."""

    name: str
    compilations: tuple[Compilation, ...]
    fallbacks: tuple[str, ...]
    trace: Callable[[], Words] | None
    untraced: str = ""


@dataclass(frozen=True, slots=True)
class Wanted:
    """What was asked for beside the model."""

    target: TargetName | None = None
    arch: str | None = None
    workers: int | None = None
    policy: str = "static"
    prompt: str | None = None
    max_new_tokens: int = 8

    def __post_init__(self) -> None:
        if self.arch and self.target != "cuda":
            raise OptionError(f"--arch {self.arch} names a GPU; say --target cuda too")

    @property
    def device(self) -> str:
        """Where the model's tensors have to be."""
        return "cuda" if self.target == "cuda" and not self.elsewhere else "cpu"

    @property
    def elsewhere(self) -> Target | None:
        """A GPU that is not here: kernels are planned for it and written, not run."""
        if self.target != "cuda" or (cuda.device_count() and not self.arch):
            return None
        return cuda.target(arch=self.arch or DEFAULT_ARCH, workers=self.workers)

    @property
    def options(self) -> dict[str, Any]:
        """Of `mkc.compile`, on this machine."""
        return {"workers": None if self.elsewhere else self.workers, "policy": self.policy}


def subject(model: str, wanted: Wanted) -> Subject:
    """Load and compile. Raises ModelError, OptionError, TargetError, and what compiling raises."""
    path, _, factory = model.rpartition(":")
    if path.endswith(".py"):
        return _made_by(Path(path), factory, wanted)
    if model.endswith(".py"):
        raise OptionError(f"{model} needs the name of a function in it: {model}:{_functions(Path(model))[0]}")
    return _language_model(model, wanted)


def language_model(path: str, device: str, elsewhere: Target | None = None, **given: Any) -> Any:
    """A CausalLM from a folder or id; for a machine that is elsewhere its plan, without weights.

    Raises OptionError, ModelError, and TargetError without transformers.
    """
    if not Path(path).is_dir() and not re.fullmatch(r"[\w-][\w.-]*(/[\w.-]+)?", path):
        raise OptionError(f"there is no folder {path}, and it is not the id of a model on Hugging Face")
    try:
        lm = import_module("mkc.lm")  # needs packages that are not installed for everyone
    except ImportError as error:
        raise TargetError(
            f'language models need transformers: pip install "mkc-compiler[hf]" ({error})'
        ) from error
    import_module("transformers.utils.logging").disable_progress_bar()  # there is one of ours
    if elsewhere:
        return lm.CausalLM.planned(path, elsewhere, policy=given["policy"])
    return lm.CausalLM.from_pretrained(path, device=device, **given)


def _language_model(path: str, wanted: Wanted) -> Subject:
    lm = language_model(path, wanted.device, wanted.elsewhere, **wanted.options)
    name = Path(path).name
    if wanted.elsewhere:
        return Subject(name, (lm.compilation,), (), None, _unrun(wanted.elsewhere))

    def trace() -> Words:
        ids = list(
            range(min(8, lm.model.config.get_text_config().vocab_size, lm.max_length - wanted.max_new_tokens))
        )
        if wanted.prompt is not None and lm.tokenizer is not None:
            ids = lm.tokenizer(wanted.prompt)["input_ids"]
        stamps: Words = lm.trace_ids(ids, wanted.max_new_tokens)
        return stamps

    return Subject(name, (lm.compilation,), (), trace)


def _made_by(path: Path, factory: str, wanted: Wanted) -> Subject:
    module, inputs = _called(path, factory)
    if wanted.device == "cuda":
        module, inputs = module.to("cuda"), _on_gpu(inputs)
    compiled = Compiled(module, options(**wanted.options), inputs)
    made, fallbacks = looked_at(compiled)
    if wanted.elsewhere:
        return _planned(factory, tuple(made), tuple(fallbacks), wanted)
    if len(made) != 1 or fallbacks:
        return Subject(
            factory, tuple(made), tuple(fallbacks), None, "the model is cut around calls that run in PyTorch"
        )
    return Subject(factory, tuple(made), (), lambda: compiled.trace(*inputs))


def _planned(name: str, made: tuple[Compilation, ...], fallbacks: tuple[str, ...], wanted: Wanted) -> Subject:
    """The same graphs for a machine that is not here."""
    target = wanted.elsewhere
    assert target is not None
    again = tuple(compile_graphs([s.graph for s in c.sections], target, wanted.policy) for c in made)
    return Subject(name, again, fallbacks, None, _unrun(target))


def _unrun(target: Target) -> str:
    return f"it was planned for {target.arch}, and not run"


def _called(path: Path, factory: str) -> tuple[Any, tuple[Any, ...]]:
    """The model and example inputs that a factory gives."""
    module = _imported(path)
    make = getattr(module, factory, None)
    if not callable(make):
        raise OptionError(f"{path} has no function {factory!r}; it has {', '.join(_functions(path))}")
    try:
        made = make()
    except Exception as error:  # the user's code may raise anything
        raise ModelError(_blamed(error, path, f"{factory}()")) from error
    if not isinstance(made, tuple) or len(made) != 2:
        raise ModelError(f"{path}:{factory} must return (module, example_inputs), not {type(made).__name__}")
    model, inputs = made
    return model, inputs if isinstance(inputs, tuple) else (inputs,)


def _imported(path: Path) -> ModuleType:
    """The file as a module that finds its neighbours, as when it is run."""
    if not path.is_file():
        raise OptionError(f"there is no file {path}")
    spec = spec_from_file_location(path.stem, path.resolve())
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    sys.modules[path.stem] = module
    sys.path.insert(0, str(path.resolve().parent))
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise ModelError(_blamed(error, path, "importing it")) from error
    return module


def _functions(path: Path) -> list[str]:
    """The functions that a file defines."""
    module = _imported(path)
    found = [
        name
        for name, value in vars(module).items()
        if isfunction(value) and value.__module__ == module.__name__
    ]
    return [name for name in found if not name.startswith("_")] or ["factory"]


def _blamed(error: BaseException, path: Path, doing: str) -> str:
    """What went wrong in the user's file, and on which of its lines."""
    frames = [f for f in traceback.extract_tb(error.__traceback__) if Path(f.filename) == path.resolve()]
    line = f", line {frames[-1].lineno}" if frames else ""
    return f"{path}{line}: {doing} raised {type(error).__name__}: {error}"


def _on_gpu(value: Any) -> Any:
    """Every tensor of a tree on the GPU."""
    match value:
        case tuple() | list():
            return type(value)(map(_on_gpu, value))
        case Mapping():
            return {key: _on_gpu(item) for key, item in value.items()}
        case _:
            return value.to("cuda") if hasattr(value, "to") else value
