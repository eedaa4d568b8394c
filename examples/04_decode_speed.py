"""Lesson 4: what a decode step costs, beside PyTorch with the same threads, in one run.

    python examples/04_decode_speed.py

Two unmodified Qwen3: the adder, and a random one of four layers, 512 wide. PyTorch runs the plainest loop there is: a
static cache, one token at a time. Our steps run inside one launch; the time of the prompt is taken off. Before a model is
timed, its answer is graded against float64, with PyTorch's own error in the same dtype as the measure.
"""
import argparse
import statistics
import time
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, Qwen3Config, Qwen3ForCausalLM, StaticCache

import mkc
from mkc.numerics import grade_answer

PROMPT = [1, 2, 3, 4, 5, 6, 7]
ROOM = 64  # tokens
DTYPES = ("float32", "bfloat16", "float16")


def adder() -> Any:
    return AutoModelForCausalLM.from_pretrained(Path(__file__).parent / "adder" / "model")


def four_layers() -> Any:
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=8192, hidden_size=512, intermediate_size=1536, num_hidden_layers=4, num_attention_heads=8,
        num_key_value_heads=4, head_dim=64, tie_word_embeddings=True, max_position_embeddings=128,
    )  # fmt: skip
    return Qwen3ForCausalLM(config)


MODELS = {"the adder": adder, "4 layers of 512": four_layers}


def main() -> None:
    wanted = parse()
    torch.set_grad_enabled(False)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    print(f"{torch.get_num_threads()} threads, {device}; milliseconds a step, median of {wanted.repeats}")
    for (name, make), dtype in product(MODELS.items(), wanted.dtype):
        model = make().to(device, getattr(torch, dtype)).eval()
        model.generation_config.eos_token_id = model.config.eos_token_id = None
        lm = mkc.CausalLM(model, max_length=ROOM)
        graded = grade_answer(lm, PROMPT, wanted.steps)
        ours, theirs = alternating(
            lambda lm=lm: step_time(lambda n: lm.generate_ids(PROMPT, n), wanted.steps),
            lambda model=model: step_time(lambda n: eager(model, n), wanted.steps),
            wanted.repeats,
        )
        nbytes = sum(p.numel() * p.element_size() for p in set(model.parameters()))
        print(
            f"{name}, {dtype}: mkc {ours * 1e3:.3f}, eager {theirs * 1e3:.3f}, ratio {theirs / ours:.2f}; "
            f"{nbytes / ours / 1e9:.1f} GB/s of weights\n  {graded}"
        )
        if not graded.passed:
            raise SystemExit("not what the model computes")


def eager(model: Any, count: int) -> list[int]:
    """`count` tokens after the prompt, by the plainest loop."""
    cache = StaticCache(config=model.config, max_cache_len=ROOM)
    token = torch.tensor([PROMPT], device=model.device)
    found = []
    for _ in range(count):
        token = model(token, past_key_values=cache, logits_to_keep=1).logits[:, -1:].argmax(-1)
        found.append(int(token))
    return found


def step_time(generate: Callable[[int], Any], steps: int) -> float:
    """Seconds of one decode step: many steps, less the prompt and the first token."""
    return (timed(lambda: generate(steps + 1)) - timed(lambda: generate(1))) / steps


def timed(work: Callable[[], Any], times: int = 3) -> float:
    """Seconds, the median of a few runs in a row."""
    taken = []
    for _ in range(times):
        start = time.perf_counter()
        work()
        taken.append(time.perf_counter() - start)
    return statistics.median(taken)


def alternating(a: Callable[[], float], b: Callable[[], float], repeats: int) -> tuple[float, float]:
    """Medians of two measurements taken in turn, so that both see the same machine."""
    pairs = [(a(), b()) for _ in range(repeats)]
    return statistics.median(x for x, _ in pairs), statistics.median(y for _, y in pairs)


def parse() -> argparse.Namespace:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    options.add_argument("--dtype", nargs="+", default=DTYPES, choices=DTYPES)
    options.add_argument("--steps", type=int, default=30)
    options.add_argument("--repeats", type=int, default=9)
    return options.parse_args()


if __name__ == "__main__":
    main()
