"""The user's side: `compile` as a function, and as a decorator of classes, instances and functions."""

import functools
from collections.abc import Callable
from typing import Any

from torch import nn

from mkc.frontend.module import Compiled, options


def compile(model: Any = None, example_inputs: Any = None, /, **given: Any) -> Any:  # noqa: A001  (as in torch.compile)
    """Compile a model into one persistent kernel.

    `model` is an `nn.Module` (or its class, as a decorator) or a function of tensors. With `example_inputs` (a tensor or
    a tuple) it is compiled now, for those shapes; without, at the first call and for each new set of shapes.
    Options: `target` ("cpu", "cuda" or a Target), `workers`, `policy` ("static", "dynamic"), `fallback` ("torch": run
    what no operator claims in PyTorch; "error": refuse), `choices` (an `mkc.Choices`; by default what `mkc bench --tune` has
    kept). Raises OptionError, ModelError, InputError, UnsupportedError,
    TargetError.
    """
    if model is None:
        return functools.partial(compile, **given)
    chosen = options(**given)
    if isinstance(model, type) and issubclass(model, nn.Module):
        return _compiled_class(model, chosen)
    if not callable(model):
        raise TypeError(f"mkc.compile takes a module, a module class or a function, not {type(model).__name__}")
    examples = example_inputs if isinstance(example_inputs, tuple | None) else (example_inputs,)
    return Compiled(model, chosen, tuple(examples) if examples is not None else None)


def _compiled_class(cls: type[nn.Module], chosen: Any) -> type[nn.Module]:
    """A subclass whose instances run through mkc; `instance.mkc` is the compiled callable."""

    class _Compiled(cls):  # type: ignore[misc, valid-type]
        @property
        def mkc(self) -> Compiled:
            made = self.__dict__.get("_mkc_compiled")
            if made is None:
                made = self.__dict__["_mkc_compiled"] = Compiled(_plain(self, cls), chosen)
            return made

        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            return self.mkc(*args, **kwargs)

    functools.update_wrapper(_Compiled, cls, updated=())
    return _Compiled


def _plain(instance: nn.Module, cls: type[nn.Module]) -> Callable[..., Any]:
    """The instance as its undecorated class sees it: the same tensors and submodules, the original call."""
    plain = cls.__new__(cls)
    plain.__dict__ = instance.__dict__
    return plain
