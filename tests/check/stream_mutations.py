"""Program of streaming workers -> Program, broken in one place that the interpreter does not look at: each goes wrong on a GPU."""

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from random import Random

import numpy as np
from check.mutations import _edit, _moved, _queues, _with_queues

from mkc.ir.graph import Kind
from mkc.ir.program import SLOT_BYTES, Program, Streams, Words
from mkc.ir.streams import MOST_HOPS

Mutation = Callable[[Program, Random], Program | None]


def _with(program: Program, **changes: object) -> Program:
    streams = program.streams
    assert streams is not None
    return replace(program, streams=replace(streams, **changes))  # type: ignore[arg-type]


def _streams(program: Program) -> Streams:
    assert program.streams is not None
    return program.streams


def _record(program: Program, rng: Random, field: str, change: Callable[[int], int]) -> Program:
    records = _streams(program).records.copy()
    at = rng.randrange(len(records))
    records[field][at] = change(int(records[field][at]))
    return _with(program, records=records)


def shift_weights(program: Program, rng: Random) -> Program | None:
    """The loaders of a task bring its neighbour's weights."""
    weighty = np.flatnonzero(_streams(program).records["fragments"])
    records = _streams(program).records.copy()
    records["first"][rng.choice(weighty.tolist())] += rng.choice((1, 2, 16384))
    return _with(program, records=records)


def change_fragments(program: Program, rng: Random) -> Program | None:
    return _record(program, rng, "fragments", lambda n: max(0, n - 1) if rng.random() < 0.5 and n else n + 1)


def change_place(program: Program, rng: Random) -> Program | None:
    return _record(program, rng, "place", lambda n: n + 1)


def change_body(program: Program, rng: Random) -> Program | None:
    return _record(program, rng, "body", lambda n: n - 1 if n else n + 1)


def drop_record(program: Program, rng: Random) -> Program | None:
    streams, at = _streams(program), rng.randrange(len(_streams(program).records))
    bounds = np.where(streams.bounds > at, streams.bounds - 1, streams.bounds).astype(np.uint32)
    return _with(program, records=np.delete(streams.records, at), bounds=bounds)


def swap_records(program: Program, rng: Random) -> Program | None:
    records = _streams(program).records.copy()
    a, b = rng.sample(range(len(records)), 2)
    records[[a, b]] = records[[b, a]]
    return _with(program, records=records)


def begin_early(program: Program, rng: Random) -> Program | None:
    """Compute warps and talking warps agree, and yet nothing holds the task back that should."""
    streams = _streams(program)
    late = np.flatnonzero(~streams.early & np.isin(program.queue, _computing(program)))
    return _begun(program, int(rng.choice(late.tolist())), True) if len(late) else None


def disagree_about_early(program: Program, rng: Random) -> Program | None:
    early = _streams(program).early.copy()
    at = rng.choice(np.flatnonzero(np.isin(program.queue, _computing(program))).tolist())
    early[at] = not early[at]
    return _with(program, early=early)


def _begun(program: Program, at: int, value: bool) -> Program:
    streams = _streams(program)
    early, records = streams.early.copy(), streams.records.copy()
    early[at] = value
    worker = int(np.searchsorted(program.bounds, at, side="right")) - 1
    mine = slice(int(streams.bounds[worker]), int(streams.bounds[worker + 1]))
    records["early"][mine][records["place"][mine] == at - int(program.bounds[worker])] = value
    return _with(program, early=early, records=records)


def _computing(program: Program) -> Words:
    parts = [part for part in program.meanings[0].parts if part.streamed and part.streamed.computes]
    return np.concatenate([np.arange(*part.tasks) for part in parts])


def change_awaits(program: Program, rng: Random) -> Program | None:
    """Loaders read a position before its step has one, or wait where nothing is to be waited for."""
    records = _streams(program).records.copy()
    at = rng.choice(np.flatnonzero(records["fragments"] == 0).tolist())
    records["awaits"][at] = 1 - records["awaits"][at]
    return _with(program, records=records)


def append_for_another(program: Program, rng: Random) -> Program | None:
    """A cache whose rows come ahead of their tasks is written by the tasks of another part as well."""
    (meaning,) = program.meanings
    parts = list(meaning.parts)
    keyed = [part for part in parts if part.streamed and part.streamed.position]
    caches = [m for part in keyed for m in part.tiling.omaps if m.tensor.storage.kind is Kind.STATE]
    at = rng.choice([i for i, part in enumerate(parts) if not part.streamed])
    tiling = replace(parts[at].tiling, omaps=(*parts[at].tiling.omaps, rng.choice(caches)))
    parts[at] = replace(parts[at], tiling=tiling)
    return replace(program, meanings=(replace(meaning, parts=tuple(parts)),))


def too_many_hops(program: Program, rng: Random) -> Program | None:
    hops = _streams(program).hops.copy()
    hops[rng.randrange(len(hops))] = MOST_HOPS + 1
    return _with(program, hops=hops)


def overlap_packs(program: Program, rng: Random) -> Program | None:
    """Weights of one task are packed over those of another, and brought from there."""
    streams = _streams(program)
    moved, onto = rng.sample([share for pack in streams.packs for share in pack.shares], 2)
    packs = tuple(
        replace(pack, shares=tuple((*s[:2], onto[2]) if s == moved else s for s in pack.shares)) for pack in streams.packs
    )
    records = streams.records.copy()
    records["first"][(records["first"] == moved[2] // SLOT_BYTES) & (records["fragments"] > 0)] = onto[2] // SLOT_BYTES
    return _with(program, packs=packs, records=records)


def pack_another_tile(program: Program, rng: Random) -> Program | None:
    at, packs = rng.randrange(len(_streams(program).packs)), list(_streams(program).packs)
    (first, count, offset), *rest = packs[at].shares
    packs[at] = replace(packs[at], shares=((first + 1, count, offset), *rest))
    return _with(program, packs=tuple(packs))


def too_much_shared_memory(program: Program, rng: Random) -> Program | None:
    return _with(program, ring_slots=_streams(program).ring_slots + 1)


def too_little_input(program: Program, rng: Random) -> Program | None:
    return _with(program, input_bytes=_streams(program).input_bytes - 16)


def share_words(program: Program, rng: Random) -> Program | None:
    """Two tensors of words are placed over each other, in the words and in what they mean."""
    maps = [m for part in program.meanings[0].parts for m in part.tiling.omaps]
    words = sorted({m.tensor.storage for m in maps if m.tensor.storage.kind is Kind.WORDS}, key=lambda s: s.base)
    moved, onto = rng.sample(words, 2)
    return _moved(program, moved, onto.base)


def redirect_words(program: Program, rng: Random) -> Program | None:
    slot = next(i for i, s in enumerate(program.slots) if s.kind is Kind.WORDS)
    operands = np.flatnonzero(program.operands["slot"] == slot).tolist()
    at, other = rng.choice(operands), rng.choice(operands)
    if program.operands["offset"][at] == program.operands["offset"][other]:
        return None
    return _edit(program, "operands", lambda o: o["offset"].__setitem__(at, o["offset"][other]))


def swap_streaming_tasks(program: Program, rng: Random) -> Program | None:
    """Two neighbours of a queue, with the records as they were."""
    computing = set(_computing(program).tolist())
    places = [i for lo, hi in pairwise(program.bounds.tolist()) for i in range(lo, hi - 1)]
    places = [i for i in places if {int(program.queue[i]), int(program.queue[i + 1])} <= computing]
    at = rng.choice(places)
    return _edit(program, "queue", lambda q: q.__setitem__([at, at + 1], q[[at + 1, at]]))


def move_to_another_worker(program: Program, rng: Random) -> Program | None:
    queues, computing = _queues(program), set(_computing(program).tolist())
    source = rng.choice([q for q in queues if computing & set(q)])
    task = rng.choice(sorted(computing & set(source)))
    source.remove(task)
    target = rng.choice([q for q in queues if q is not source])
    target.append(task)
    target.sort()
    return _with_queues(program, queues)


STREAM_MUTATIONS: dict[str, Mutation] = {
    f.__name__: f
    for f in (
        shift_weights, change_fragments, change_place, change_body, drop_record, swap_records, begin_early, disagree_about_early,
        change_awaits, append_for_another, too_many_hops, overlap_packs, pack_another_tile, too_much_shared_memory,
        too_little_input, share_words, redirect_words, swap_streaming_tasks, move_to_another_worker,
    )
}  # fmt: skip
