"""A configuration -> what each worker reads of a layer's weights: `python -m mkc.bench.shares --model gemma-3-1b --arch sm_90a`.

On the meta device: no weights are made, nothing is built or run. A fragment is 4 KB, a layer what lies between two attentions.
"""

import argparse
from itertools import pairwise

import numpy as np
import torch

from mkc.bench import models
from mkc.compiler import compile_graphs
from mkc.frontend.decoding import make_state, raise_decoding
from mkc.ir.program import Part, Program, Words
from mkc.ir.target import Target
from mkc.targets import cuda


def planned(model: str, target: Target, room: int = 2048) -> Program:
    """A step of decoding."""
    made = models.make(model, "meta", "bfloat16")
    with torch.no_grad():
        decoding = raise_decoding(made, make_state(made, room, 64), ())
    return compile_graphs([decoding.graph], target).program


def shares(program: Program) -> list[tuple[Part, Words]]:
    """Of each part that streams, the fragments of each worker: of its keys, which only a step knows, none."""
    assert program.streams is not None
    fragments, worker = np.zeros((2, len(program.tasks)), np.int64)
    for number, (begin, end) in enumerate(pairwise(program.bounds.tolist())):
        worker[program.queue[begin:end]] = number
        for record in program.streams.records[slice(*program.streams.bounds[number : number + 2].tolist())]:
            fragments[program.queue[begin + record["place"]]] = record["fragments"]
    parts = [(part, slice(*part.tasks)) for part in program.meanings[0].parts if part.streamed and part.streamed.computes]
    return [(part, np.bincount(worker[mine], fragments[mine], program.num_workers)) for part, mine in parts]


def table(found: list[tuple[Part, Words]]) -> str:
    """A line for each operator of the last whole layer, then of that layer and of a step: all workers' mean, and the most that one has."""
    attends = [i for i, (part, _) in enumerate(found) if part.streamed and part.streamed.position]
    layer = found[slice(*attends[-2:])]
    lines = [f"{'fragments':<28}{'tasks':>7}{'mean':>9}{'worst':>7}{'sum of worst':>14}"]
    lines += [_line(part.name, part.tasks[1] - part.tasks[0], [row]) for part, row in layer]
    for name, rows in (("layer", layer), ("step", found)):
        lines.append(_line(name, sum(part.tasks[1] - part.tasks[0] for part, _ in rows), [row for _, row in rows]))
    return "\n".join(lines)


def _line(name: str, tasks: int, rows: list[Words]) -> str:
    together = np.sum(rows, axis=0)
    return f"{name:<28}{tasks:>7}{together.mean():>9.1f}{together.max():>7.0f}{sum(row.max() for row in rows):>14.0f}"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m mkc.bench.shares", description="What each worker reads of the weights.")
    parser.add_argument("--model", default="qwen3-0.6b", help="a configuration of `mkc bench`, or a Hugging Face folder")
    parser.add_argument("--arch", default="sm_90a", help="of a GPU that need not be here")
    parser.add_argument("--workers", type=int, default=132)
    given = parser.parse_args()
    print(table(shares(planned(given.model, cuda.target(arch=given.arch, workers=given.workers)))))


if __name__ == "__main__":
    main()
