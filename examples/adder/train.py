"""Nothing -> model/: teaches a Qwen3 of 0.8 M parameters to add, and saves it as any other Qwen3 is saved.

    python examples/adder/train.py

It ends once every sum of a held-out set is right: some minutes on two CPU cores. `evaluate.py` then
asks it others.
"""

# mypy: disable-error-code="no-untyped-call"

import argparse
import random
import time
from pathlib import Path

import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from sums import LONGEST, Pair, answer, prompt, seen_pairs, unseen_pairs
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import (
    GenerationConfig,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
    get_cosine_schedule_with_warmup,
)

MODEL = Path(__file__).parent / "model"
END, PAD = "<end>", "<pad>"
IGNORE = -100  # the label that cross_entropy leaves out
WATCHED = 4000  # unseen sums asked at every check
ENOUGH = 1.0  # the share of them that ends training


def main() -> None:
    """Trains from the seed and writes model/."""
    options = parse()
    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    tokenizer, model = characters(), qwen3()
    print(f"{model.num_parameters():,} parameters")
    start = time.perf_counter()
    train(model, tokenizer, options)
    print(f"trained in {(time.perf_counter() - start) / 60:.1f} minutes")
    save(model, tokenizer, options.model)


def characters() -> PreTrainedTokenizerFast:
    """A token for every character of a sum, digits first so that a digit's id is its value; others raise."""
    vocabulary = {token: i for i, token in enumerate([*"0123456789+=", END, PAD])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=END, pad_token=PAD, padding_side="right", model_max_length=64
    )


def qwen3() -> Qwen3ForCausalLM:
    """A fresh model: 4 layers of width 128, 4 heads over 2 KV heads, two of the 16 vocabulary rows spare."""
    config = Qwen3Config(
        vocab_size=16,
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=64,
        initializer_range=0.05,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=12,
        pad_token_id=13,
    )
    return Qwen3ForCausalLM(config)


def train(model: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerFast, options: argparse.Namespace) -> None:
    """AdamW on fresh pairs until a check passes `ENOUGH` or the steps are spent. Changes `model`."""
    draw = random.Random(options.seed)
    watched = batch(tokenizer, unseen_pairs(WATCHED, seed=1))
    optimizer = torch.optim.AdamW(model.parameters(), options.rate, (0.9, 0.98), weight_decay=0.1, fused=True)
    schedule = get_cosine_schedule_with_warmup(optimizer, options.warmup, options.steps)
    with bar() as progress:
        task = progress.add_task("adding", total=options.steps, loss="", right="")
        for step in range(1, options.steps + 1):
            loss = learn(model, *batch(tokenizer, seen_pairs(options.batch, draw)), optimizer)
            schedule.step()
            progress.update(task, advance=1, loss=f"loss {loss:.4f}")
            if step % options.check == 0:
                right = right_share(model, *watched)
                progress.update(task, right=f"{right:.2%} right")
                progress.console.print(f"step {step:5}  loss {loss:.4f}  unseen sums right {right:.2%}")
                if right >= ENOUGH:
                    break


def learn(model: Qwen3ForCausalLM, ids: Tensor, labels: Tensor, optimizer: torch.optim.Optimizer) -> float:
    """One step down the loss of the answers. ids, labels: [batch, length], the labels one ahead."""
    logits = model(input_ids=ids, use_cache=False).logits  # [batch, length, vocabulary]
    loss = cross_entropy(logits.flatten(0, 1), labels.flatten())
    optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    return loss.item()


@torch.no_grad()
def right_share(model: Qwen3ForCausalLM, ids: Tensor, labels: Tensor) -> float:
    """The share of rows whose every label is the likeliest token: those that greedy generation gets right."""
    likeliest: Tensor = model(input_ids=ids, use_cache=False).logits.argmax(-1)  # [batch, length]
    return ((likeliest == labels) | (labels == IGNORE)).all(-1).float().mean().item()


def batch(tokenizer: PreTrainedTokenizerFast, pairs: list[Pair]) -> tuple[Tensor, Tensor]:
    """Pairs -> (ids, labels), both int64 [pairs, longest - 1]; labels are the next tokens of answer and end.

    Rows are padded on the right, where causal attention needs no mask.
    """
    questions = [prompt(*pair) for pair in pairs]
    sums = [question + answer(*pair) + END for question, pair in zip(questions, pairs, strict=True)]
    ids: Tensor = tokenizer(sums, padding=True, return_tensors="pt")["input_ids"]
    asked = torch.tensor([len(question) for question in questions])[:, None]
    told = (torch.arange(ids.shape[1]) >= asked) & (ids != tokenizer.pad_token_id)
    return ids[:, :-1], ids.where(told, IGNORE)[:, 1:]


def save(model: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Writes float32 safetensors, the configs and the tokenizer, as `from_pretrained` reads them."""
    model.generation_config = GenerationConfig(
        do_sample=False,
        max_new_tokens=LONGEST,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    print(f"{(folder / 'model.safetensors').stat().st_size:,} bytes of weights in {folder}")


def bar() -> Progress:
    """The line that shows how far training is."""
    counts = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn()
    state = TextColumn("{task.fields[loss]}"), TextColumn("{task.fields[right]}")
    return Progress(*counts, *state, TimeElapsedColumn())


def parse() -> argparse.Namespace:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    options.add_argument("--model", type=Path, default=MODEL, help="the folder to write")
    options.add_argument("--steps", type=int, default=2500, help="the most steps; the cosine ends there")
    options.add_argument("--batch", type=int, default=128, help="sums a step")
    options.add_argument("--rate", type=float, default=2e-3, help="the learning rate after warm-up")
    options.add_argument("--warmup", type=int, default=100, help="steps of warm-up")
    options.add_argument("--check", type=int, default=100, help="steps between checks")
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--threads", type=int, default=2)
    return options.parse_args()


if __name__ == "__main__":
    main()
