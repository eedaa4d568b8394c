"""How long steps of decoding take, by the wall clock, from an idle device to an idle device: launches count."""

import time

import torch

from mkc.bench.baselines import FIRST, Run
from mkc.ir.program import Words
from mkc.lm import CausalLM


def ours(lm: CausalLM, context: int, steps: int) -> Run:
    """Our decoding from this context on."""
    return Run(lambda: lm.stand_at(context, [[FIRST]] * lm.batch, steps), lm.decode_on)


def seconds(run: Run, steps: int, device: torch.device) -> float:
    run.rewind()
    _wait(device)
    start = time.perf_counter()
    run.go(steps)
    _wait(device)
    return time.perf_counter() - start


def traced(lm: CausalLM, context: int, steps: int) -> Words:
    """Stamps of a launch from this context on, the second of two: the first meets cold memory."""
    for _ in range(2):
        lm.stand_at(context, [[FIRST]] * lm.batch, steps)
        stamps = lm.trace_on(steps)
    return stamps


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
