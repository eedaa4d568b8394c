"""nn.Module, inputs -> Explanation. The model is compiled, not run."""

from dataclasses import replace
from typing import Any

from mkc.compiler import Compilation, compile_graphs
from mkc.errors import InputError, ModelError
from mkc.frontend.module import Compiled, options
from mkc.inspect.account import Explanation
from mkc.inspect.why import why
from mkc.ir.target import Target


def explain(model: Any, example_inputs: Any = None, /, **given: Any) -> Explanation:
    """What mkc makes of a model: operators, tasks, bytes, the memory floor, and what stays in PyTorch and why.

    Takes what `mkc.compile` takes, options too, or what `mkc.compile` and `mkc.CausalLM` gave. With a Target of a machine
    that is not here, such as `mkc.targets.cuda.target(arch="sm_90a")`, the model is only planned for it, and
    may be on the meta device, without memory. Raises what `mkc.compile` raises.
    """
    return Explanation.of(*looked_at(model, example_inputs, **given))


def looked_at(model: Any, example_inputs: Any = None, /, **given: Any) -> tuple[list[Compilation], list[str]]:
    """The kernels of a model, for whatever target, and the calls that stay in PyTorch, as sentences."""
    chosen = options(**given)
    elsewhere = chosen.target if isinstance(chosen.target, Target) else None
    if example_inputs is None:
        made, fallbacks = _made(model)
    else:
        examples = example_inputs if isinstance(example_inputs, tuple) else (example_inputs,)
        here = chosen if any(getattr(x, "is_meta", False) for x in examples) else replace(chosen, target=None)
        compiled = Compiled(_plain(model), here if elsewhere else chosen, examples)
        made, fallbacks = compiled.compilations, compiled.fallbacks
    if elsewhere:
        made = [compile_graphs([s.graph for s in c.sections], elsewhere, chosen.policy) for c in made]
    return made, [str(fallback) for fallback in fallbacks]


def _made(model: Any) -> tuple[list[Compilation], list[Any]]:
    """The kernels that a compiled model has already."""
    model = getattr(model, "mkc", model)
    if isinstance(model, Compiled):
        if not model.compilations and not model.fallbacks:
            raise ModelError("call the model, or give example_inputs, before looking at it")
        return model.compilations, model.fallbacks
    if isinstance(made := getattr(model, "compilation", None), Compilation):
        return [made], []
    raise InputError(
        f"explain needs example_inputs to know the shapes that {type(model).__name__} is called with"
    )


def _plain(model: Any) -> Any:
    """The model under what `mkc.compile` made of it."""
    model = getattr(model, "mkc", model)
    return model.model if isinstance(model, Compiled) else model


__all__ = ["Explanation", "explain", "looked_at", "why"]
