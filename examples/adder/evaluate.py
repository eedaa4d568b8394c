"""model/ -> how often its sums are right, by operand length, on pairs that training never used.

    python examples/adder/evaluate.py

The model generates greedily in PyTorch, many prompts at a time.
"""

import argparse
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from sums import DIGITS, LONGEST, Pair, prompt, read, unseen_pairs
from transformers import AutoModelForCausalLM, AutoTokenizer

MODEL = Path(__file__).parent / "model"
ENOUGH = 0.99  # the share of right sums below which this exits with 1


def main() -> None:
    """Prints the table; exits with 1 where fewer than `ENOUGH` of the sums are right."""
    options = parse()
    torch.set_num_threads(options.threads)
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    model = AutoModelForCausalLM.from_pretrained(options.model, dtype=options.dtype)  # in eval mode
    pairs = unseen_pairs(options.pairs, options.seed)
    said = add(model, tokenizer, pairs)
    right = {pair: total == sum(pair) for pair, total in zip(pairs, said, strict=True)}
    Console().print(table(right))
    share = sum(right.values()) / len(right)
    print(f"{sum(right.values())} of {len(right)} unseen sums right: {share:.2%} ({options.dtype})")
    raise SystemExit(share < ENOUGH)


def add(model: Any, tokenizer: Any, pairs: list[Pair]) -> list[int]:
    """What the model says each pair sums to, by greedy generation; -1 where it says no number.

    Prompts of one length are a batch, so none is padded: every row is what a single user would send.
    """
    by_length: dict[int, list[Pair]] = defaultdict(list)
    for pair in pairs:
        by_length[len(prompt(*pair))].append(pair)
    said: dict[Pair, int] = {}
    for alike in by_length.values():
        said.update(zip(alike, say(model, tokenizer, alike), strict=True))
    return [said[pair] for pair in pairs]


def say(model: Any, tokenizer: Any, alike: list[Pair]) -> list[int]:
    """`add` for pairs whose prompts have one length."""
    asked = tokenizer([prompt(*pair) for pair in alike], return_tensors="pt")  # input_ids: [batch, length]
    told = model.generate(**asked, max_new_tokens=LONGEST)  # [batch, length + new]
    new = told[:, asked["input_ids"].shape[1] :]
    return [read(text) for text in tokenizer.batch_decode(new, skip_special_tokens=True)]


def table(right: dict[Pair, bool]) -> Table:
    """Right sums of those asked: a row for each length of the first operand, a column for the second's."""
    cells: dict[Pair, list[bool]] = defaultdict(list)
    for (a, b), ok in right.items():
        cells[len(str(a)), len(str(b))].append(ok)
    lengths = range(1, DIGITS + 1)
    grid = Table("digits", *map(str, lengths), title="right of asked, by the operands' digits")
    for a in lengths:
        grid.add_row(str(a), *(f"{sum(cells[a, b])}/{len(cells[a, b])}" for b in lengths))
    return grid


def parse() -> argparse.Namespace:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    options.add_argument("--model", type=Path, default=MODEL, help="a folder that save_pretrained wrote")
    options.add_argument("--pairs", type=int, default=2000, help="how many unseen sums to ask")
    options.add_argument("--seed", type=int, default=2, help="which unseen sums; training watches those of 1")
    options.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    options.add_argument("--threads", type=int, default=2)
    return options.parse_args()


if __name__ == "__main__":
    main()
