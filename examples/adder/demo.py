"""Sums the model has never seen, answered by one kernel launch each, and checked token for token against PyTorch.

    make demo                                                  all of it
    python examples/adder/demo.py --prompt "1234+5678="        one question

The model is an unmodified Hugging Face Qwen3. Reading the prompt and every step of decoding happen inside the kernel.
"""

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from sums import LONGEST, prompt, read, unseen_pairs
from transformers import AutoModelForCausalLM, AutoTokenizer, StaticCache
from transformers.utils import logging

import mkc
from mkc.cli.report import write_report, write_timeline
from mkc.cli.subject import Subject

HERE = Path(__file__).parent
ROOM = 32  # tokens of prompt and answer
console = Console()


def main() -> None:
    wanted = parse()
    torch.set_grad_enabled(False)
    logging.disable_progress_bar()
    tokenizer = AutoTokenizer.from_pretrained(HERE / "model")
    model = AutoModelForCausalLM.from_pretrained(HERE / "model", dtype=wanted.dtype).to(wanted.device).eval()
    lm, cold, warm = compiled(model, tokenizer)
    if wanted.prompt:
        console.print(f"{wanted.prompt}{read(lm.generate(wanted.prompt, LONGEST))}")
        return
    right, same = check(lm, model, tokenizer, wanted.sums)
    launches = lm.launches / wanted.sums
    speeds = measure(lm, model, tokenizer, with_compile=not wanted.quick)
    report(lm, right, same, wanted.sums, launches, (cold, warm), speeds)
    show(lm, tokenizer, wanted.out)
    if same < wanted.sums or right < 0.99 * wanted.sums:
        raise SystemExit("the answers are not what they should be")


def compiled(model: Any, tokenizer: Any) -> tuple[mkc.CausalLM, float, float]:
    """The kernel, and the seconds it took to make with an empty cache and with a full one."""

    def build() -> mkc.CausalLM:
        return mkc.CausalLM(model, tokenizer, max_length=ROOM)

    with console.status("compiling prompt and decoding into one kernel"), tempfile.TemporaryDirectory() as folder:
        kept = os.environ.get("MKC_CACHE_DIR")
        os.environ["MKC_CACHE_DIR"] = folder
        cold, _ = timed(build)
        warm, lm = timed(build)
        del os.environ["MKC_CACHE_DIR"]
        if kept:
            os.environ["MKC_CACHE_DIR"] = kept
    return lm, cold, warm


def check(lm: mkc.CausalLM, model: Any, tokenizer: Any, count: int) -> tuple[int, int]:
    """How many unseen sums are right, and how many answers are PyTorch's, token for token."""
    right = same = 0
    for a, b in track(unseen_pairs(count, seed=3), "adding numbers it has not seen", console=console, transient=True):
        ids = tokenizer(prompt(a, b))["input_ids"]
        ours = lm.generate_ids(ids, LONGEST)
        asked = torch.tensor([ids], device=model.device)
        theirs = model.generate(asked, attention_mask=torch.ones_like(asked), max_new_tokens=LONGEST)[0, len(ids) :]
        same += ours == theirs.tolist()
        right += read(tokenizer.decode(ours, skip_special_tokens=True)) == a + b
    return right, same


def measure(lm: mkc.CausalLM, model: Any, tokenizer: Any, with_compile: bool) -> dict[str, float]:
    """Tokens per second of whole answers, the median of several."""
    ids = tokenizer(prompt(98765, 12345))["input_ids"]
    speeds = {"mkc, one launch": rate(lambda: len(lm.generate_ids(ids, LONGEST)), 200)}
    speeds["PyTorch eager, generate"] = rate(lambda: generated(model, ids), 5)
    speeds["PyTorch eager, plain loop"] = rate(lambda: looped(model, model.config, ids), 10)
    if with_compile:
        with console.status("compiling the same loop with torch.compile"):
            fast = torch.compile(model, dynamic=False)
            looped(fast, model.config, ids)
        speeds["torch.compile, plain loop"] = rate(lambda: looped(fast, model.config, ids), 20)
    return speeds


def generated(model: Any, ids: list[int]) -> int:
    """Tokens that `generate` gives."""
    asked = torch.tensor([ids], device=model.device)
    told = model.generate(asked, attention_mask=torch.ones_like(asked), max_new_tokens=LONGEST)
    return int(told.shape[1]) - len(ids)


def looped(model: Any, config: Any, ids: list[int]) -> int:
    """The shortest loop one writes by hand: a static cache, greedy, no `generate` around it."""
    device = next(model.parameters()).device
    cache = StaticCache(config=config, max_cache_len=ROOM)
    token = torch.tensor([ids], device=device)
    for count in range(1, LONGEST + 1):  # noqa: B007  (how far it came)
        token = model(token, past_key_values=cache, logits_to_keep=1).logits[:, -1:].argmax(-1)
        if token.item() == config.eos_token_id:
            break
    return count


def rate(answer: Callable[[], int], repeats: int) -> float:
    """Tokens per second: what `answer` returns over the median of its times."""
    tokens = answer()
    return tokens / statistics.median(timed(answer)[0] for _ in range(repeats))


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    start = time.perf_counter()
    result = work()
    return time.perf_counter() - start, result


def report(
    lm: mkc.CausalLM, right: int, same: int, count: int, launches: float,
    seconds: tuple[float, float], speeds: dict[str, float],
) -> None:  # fmt: skip
    program = lm.compilation.program
    table = Table(show_header=False, title=f"the adder on {lm.compilation.target}", title_justify="left")
    table.add_row("right answers", f"{right} of {count} unseen sums")
    table.add_row("as PyTorch, token for token", f"{same} of {count}")
    table.add_row("kernel launches per answer", f"{launches:g}")
    sections = ", ".join(f"{len(s.tasks.tasks)} in {s.graph.name}" for s in lm.compilation.sections)
    table.add_row("tasks", f"{len(program.tasks)}: {sections}")
    table.add_row("events", str(program.num_events))
    table.add_row("compile time", f"{seconds[0]:.1f} s cold, {seconds[1]:.1f} s warm")
    for name, speed in speeds.items():
        table.add_row(name, f"{speed:,.0f} tokens/s")
    console.print(table)


def show(lm: mkc.CausalLM, tokenizer: Any, out: Path) -> None:
    """Write the page, the graph and the timeline of one answer."""
    ids = tokenizer(prompt(98765, 12345))["input_ids"]
    subject = Subject("adder", (lm.compilation,), (), lambda: lm.trace_ids(ids, LONGEST))
    files = write_report(subject, out) + write_timeline(subject, lm.trace_ids(ids, LONGEST), out)
    table = Table("file", "what it is", title=f"written to {out}", title_justify="left")
    for name, what in files:
        table.add_row(name, what)
    console.print(table)


def parse() -> argparse.Namespace:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    options.add_argument("--prompt", help='one question, such as "1234+5678="')
    options.add_argument("--sums", type=int, default=200, help="how many unseen sums to check")
    options.add_argument("--dtype", default="float32", choices=("float32", "bfloat16", "float16"))
    options.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options.add_argument("--quick", action="store_true", help="leave torch.compile out of the comparison")
    options.add_argument("--out", type=Path, default=Path("out/adder"), help="where pages and pictures go")
    return options.parse_args()


if __name__ == "__main__":
    main()
