"""A configuration -> how long each pass takes to plan it: `python -m mkc.bench.planning --model qwen3-8b --prompt 2048 --arch sm_90a`.

On the meta device: no weights are made, nothing is run. Without --arch the plan is for this CPU. With --cubin the page is compiled
too, and then everything is done once more, as it is by a process that finds all of it kept.
"""

import argparse
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import wraps
from typing import Any
from unittest import mock

import torch
from transformers import PreTrainedModel

from mkc import compiler
from mkc.bench import models
from mkc.frontend.convert import Raised
from mkc.frontend.decoding import State, make_state, raise_decoding, raise_prompt
from mkc.ir.target import Target
from mkc.targets import cpu, cuda, nvrtc

PASSES = ("fuse", "stream", "place", "tile", "link", "signal", "schedule", "encode", "check", "render")


def planning(model: str, prompt: int | None, target: Target, cubin: bool = False) -> tuple[dict[str, float], int]:
    """Seconds of CPU time by pass, behind tracing and converting; and how many tasks the plan has.

    The section planned reads a prompt of so many tokens in one step, or decodes where `prompt` is None. With `cubin`, which needs
    a CUDA target, so does the compiler of the page, and `warm` is all of it when everything is kept.
    """
    seconds: dict[str, float] = {}
    made = models.make(model, "meta", "bfloat16")
    length = prompt or 128
    target = replace(target, streams=target.streams and prompt is None)
    with torch.no_grad(), _nothing_kept():
        state = make_state(made, length + 128, length)
        raised = _timed("trace", _raised, seconds)(made, state, prompt)
        with _passes_timed(seconds):
            planned = compiler.plan([raised.graph], target, "static")
        if cubin:
            _timed("cubin", nvrtc.compile_cubin, seconds)(planned.source.complete, target.arch)
            _built(made, state, prompt, target)  # which keeps the plan
            _timed("warm", _built, seconds)(made, state, prompt, target)
    return seconds, len(planned.program.tasks)


@contextmanager
def _nothing_kept() -> Iterator[None]:
    """At first: a cache of its own."""
    with (
        tempfile.TemporaryDirectory(prefix="mkc-planning-") as folder,
        mock.patch.dict(os.environ, MKC_CACHE_DIR=folder, MKC_KEEP="1"),
    ):
        yield


def _raised(model: PreTrainedModel, state: State, prompt: int | None) -> Raised:
    return raise_decoding(model, state, ()) if prompt is None else raise_prompt(model, state, (), prompt)


def _built(model: PreTrainedModel, state: State, prompt: int | None, target: Target) -> None:
    made = compiler.compile_graphs([_raised(model, state, prompt).graph], target)
    nvrtc.compile_cubin(made.source.complete, target.arch)


@contextmanager
def _passes_timed(seconds: dict[str, float]) -> Iterator[None]:
    passes = {name: getattr(compiler, name) for name in PASSES}
    try:
        for name, function in passes.items():
            setattr(compiler, name, _timed(name, function, seconds))
        yield
    finally:
        for name, function in passes.items():
            setattr(compiler, name, function)


def _timed(name: str, function: Callable[..., Any], seconds: dict[str, float]) -> Callable[..., Any]:
    @wraps(function)
    def run(*args: Any, **given: Any) -> Any:
        start = time.process_time()
        try:
            return function(*args, **given)
        finally:
            seconds[name] = seconds.get(name, 0.0) + time.process_time() - start

    return run


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m mkc.bench.planning", description="Seconds of CPU time by pass.")
    parser.add_argument("--model", default="qwen3-0.6b", help="a configuration of `mkc bench`, or a Hugging Face folder")
    parser.add_argument("--prompt", type=int, metavar="TOKENS", help="plan reading so many in one step (default: decoding)")
    parser.add_argument("--arch", help="of a GPU that need not be here, such as sm_90a (default: this CPU)")
    parser.add_argument("--workers", type=int)
    parser.add_argument("--cubin", action="store_true", help="also compile the page, for --arch, and do all again from what is kept")
    given = parser.parse_args()
    if given.cubin and not given.arch:
        parser.error("--cubin needs --arch")
    target = cuda.target(arch=given.arch, workers=given.workers) if given.arch else cpu.target(given.workers)
    seconds, tasks = planning(given.model, given.prompt, target, given.cubin)
    warm = f", warm {seconds.pop('warm'):.1f} s" if given.cubin else ""
    times = ", ".join(f"{name} {seconds[name]:.2f}" for name in ("trace", *PASSES, "cubin") if name in seconds)
    print(f"{given.model}, {given.prompt or 'no'} prompt, {target.arch}: {tasks} tasks, {sum(seconds.values()):.1f} s: {times}{warm}")


if __name__ == "__main__":
    main()
