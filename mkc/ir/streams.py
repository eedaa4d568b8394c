"""Program, Target -> nothing, or UnsoundPlan. What streaming workers are told: records, packed memory, who begins early, room."""

from itertools import pairwise

import numpy as np

from mkc.errors import UnsoundPlan
from mkc.ir.dtype import DType
from mkc.ir.graph import Kind, Storage
from mkc.ir.program import (
    FIXED_BYTES,
    MAX_OPERANDS,
    SLOT_BYTES,
    Pack,
    Part,
    Program,
    Streamed,
    Streams,
    passing,
    slots,
)
from mkc.ir.refusal import unsound
from mkc.ir.span import Box
from mkc.ir.target import Target

TILE_ROWS, FRAGMENT_DEPTH = 8, 256  # of weights: rows of a tile, and a fragment of it for each of 8 compute warps
ABREAST = (1, 2, 4, 8)  # tiles that these 8 share evenly
MOST_HOPS = 1 << 12  # so that cycles to wait, some thousand a hop, stay far from 2^31

Place = tuple[int, int]  # in packed memory: the first slot, how many fragments of each compute warp


def check_streams(program: Program, target: Target) -> None:
    parts = [part for meaning in program.meanings for part in meaning.parts]
    streaming = [part for part in parts if part.streamed]
    streams = program.streams
    if streams is None:
        kinds = [str(slot) for slot in program.slots if slot.kind in (Kind.WORDS, Kind.PACKED)]
        if streaming or kinds:
            raise UnsoundPlan(f"workers that do not stream have {', '.join(kinds) or streaming[0].name} to deal with")
        return
    if len(program.sections) != 1 or program.is_dynamic:
        raise UnsoundPlan(f"streaming workers know one section, in queues of their own; this has {len(program.sections)}")
    _room(program, streams, streaming, target)
    for part in parts:
        if len(part.maps) > MAX_OPERANDS:
            raise unsound(program, f"{part.name} has {len(part.maps)} operands, and an entry holds {MAX_OPERANDS}", part.tasks[0])
    _kept_positions(program, parts)
    places: dict[int, Place] = {}
    for part in streaming:
        _told_apart(program, part)
        _pinned(program, part)
        _keys_come_ahead(program, part, parts)
    _packed(program, streams, streaming, places)
    _followers(program, streams, streaming)
    _records(program, streams, streaming, places)


# ---- room


def _room(program: Program, streams: Streams, streaming: list[Part], target: Target) -> None:
    wanted = max((part.streamed.input_bytes for part in streaming if part.streamed), default=0)
    taken = streams.ring_slots * (SLOT_BYTES + 16) + FIXED_BYTES + streams.input_bytes
    if streams.ring_slots < 1 or streams.input_bytes < wanted or not taken <= streams.shared_bytes <= target.scratch_bytes:
        raise UnsoundPlan(
            f"{streams.shared_bytes} bytes of shared memory for a ring of {streams.ring_slots} and an input of {streams.input_bytes} "
            f"bytes; they take {taken}, bodies ask for an input of {wanted}, and {target} has {target.scratch_bytes}"
        )
    packed = [slot.nbytes for slot in program.slots if slot.kind is Kind.PACKED]
    if packed != [streams.nbytes]:
        raise UnsoundPlan(f"{streams.nbytes} bytes are packed, and slots have {packed} for them")


# ---- who runs what


def _told_apart(program: Program, part: Part) -> None:
    """The body of each task was made for the ranges of this very task."""
    for task, (body, ranges) in enumerate(zip(part.bodies, part.tiling.ranges(), strict=True), part.tasks[0]):
        if program.tasks["ranges"][task, : len(ranges)].tolist() != [list(r) for r in ranges]:
            raise unsound(program, f"the body of task {task} was made for {ranges}", task)
        if (body.streams, bool(body.computes), body.caches) != (True, _asked(part).computes, _asked(part).position is not None):
            raise unsound(program, f"task {task} of {part.name} needs a body that streams", task)


def _asked(part: Part) -> Streamed:
    assert part.streamed is not None
    return part.streamed


def _pinned(program: Program, part: Part) -> None:
    """Each grid point runs where its weights, and its rows of a cache, have been from the first step on."""
    if not part.tiling.pinned:
        return
    first, end = part.tasks
    for worker in range(program.num_workers):
        for task in program.queue[program.bounds[worker] : program.bounds[worker + 1]].tolist():
            if first <= task < end and (task - first) * program.num_workers // (end - first) != worker:
                raise unsound(program, f"task {task} of {part.name} is pinned, and not to worker {worker}", task)


def _kept_positions(program: Program, parts: list[Part]) -> None:
    """A worker keeps an integer that a streaming body has read until the step ends, so nobody may change it for another."""
    kept, stale = set[Storage](), set[Storage]()
    for part in parts:
        integers = {m.tensor.storage for m in part.maps if part.streamed and m.tensor.dtype is DType.I64} - _written(part)
        if not stale.isdisjoint(integers):
            raise unsound(program, f"{part.name} may find an integer as it was before this step changed it", part.tasks[0])
        kept |= integers
        stale |= kept & _written(part)


def _keys_come_ahead(program: Program, part: Part, parts: list[Part]) -> None:
    """Loaders read a cache before the part's tasks begin, and where each finds what it wrote itself. Nobody else writes there, or
    changes the table that says which pages are whose."""
    if _asked(part).position is None:
        return
    caches = _written(part) & {m.tensor.storage for m in part.tiling.imaps}
    others = [other for other in parts if other is not part and not caches.isdisjoint(_written(other))]
    if others:
        raise unsound(program, f"{others[0].name} writes where keys of {part.name} come from ahead of their task", part.tasks[0])
    tables = {m.tensor.storage for m in part.tiling.imaps if m.tensor.dtype is DType.I64 and m is not _asked(part).position}
    movers = [other for other in parts if not tables.isdisjoint(_written(other))]
    if movers:
        raise unsound(program, f"{movers[0].name} writes the table by which keys of {part.name} come ahead of their task", part.tasks[0])
    if not caches or not part.tiling.pinned:
        raise unsound(program, f"{part.name} has keys that come through the ring, from no cache of its own", part.tasks[0])


def _written(part: Part) -> set[Storage]:
    return {m.tensor.storage for m in part.tiling.omaps}


# ---- packed memory


def _packed(program: Program, streams: Streams, streaming: list[Part], places: dict[int, Place]) -> None:
    """Every part with weights has a pack of them, which its tasks share out, and no two tasks share a byte."""
    parts = [part for part in streaming if _asked(part).weights]
    if len(streams.packs) != len(parts):
        raise UnsoundPlan(f"{len(streams.packs)} packs for {len(parts)} parts that have weights")
    for part, pack in zip(parts, streams.packs, strict=True):
        asked = _asked(part)
        known = (pack.weights, pack.gated) == (asked.weights, asked.gated) and len(pack.shares) == len(asked.passages)
        passages = [(first, count, pack.fragments, pack.chunk, pack.group, pack.abreast) for first, count, _ in pack.shares]
        if not known or passages != list(asked.passages):
            raise unsound(program, f"the pack of {part.name} is not of the tiles that its tasks multiply", part.tasks[0])
        _tiles(program, part, asked, pack)
        for task, (_, count, offset) in enumerate(pack.shares, part.tasks[0]):
            places[task] = offset // SLOT_BYTES, passing(count, pack.fragments, pack.abreast)
            if offset % SLOT_BYTES or offset < 0:
                raise unsound(program, f"the weights of task {task} are at {offset}, within a slot", task)
    taken = sorted((first, first + slots(fragments), task) for task, (first, fragments) in places.items())
    for first, end, task in taken:
        if end * SLOT_BYTES > streams.nbytes:
            raise unsound(program, f"the weights of task {task} are in slots {first} to {end} of {streams.nbytes} bytes", task)
    for (_, end, one), (start, _, other) in pairwise(taken):
        if start < end:
            raise unsound(program, f"the weights of tasks {one} and {other} share slot {start} of packed memory", one, other)


def _tiles(program: Program, part: Part, asked: Streamed, pack: Pack) -> None:
    """Passages follow each other, over all rows and the whole depth."""
    rows = asked.weights[0].shape[0] * 2 if asked.gated else sum(w.shape[0] for w in asked.weights)
    at = 0
    for first, count, *_ in asked.passages:
        if first != at or count < 1:
            raise unsound(program, f"the passages of {part.name} do not share out its tiles", part.tasks[0])
        at += count
    plain = all(w.dtype is DType.BF16 and w.layout.rank == 2 for w in asked.weights)
    same = len({w.shape[1] for w in asked.weights}) == 1 and (not asked.gated or len({w.shape for w in asked.weights}) == 1)
    deep = max(w.shape[-1] for w in asked.weights) * pack.abreast <= pack.fragments * FRAGMENT_DEPTH
    deep = deep and 0 < pack.chunk <= pack.fragments and pack.fragments % pack.chunk == 0 and pack.group > 0
    deep = deep and pack.abreast in ABREAST and (pack.abreast == 1 or pack.chunk == pack.fragments)
    read_only = all(w.storage.kind is Kind.PARAM for w in asked.weights)
    if not (plain and same and deep and read_only and at == -(-rows // TILE_ROWS)):
        raise unsound(program, f"{at} tiles of {pack.fragments} fragments are not the weights of {part.name}", part.tasks[0])


# ---- queues


def _followers(program: Program, streams: Streams, streaming: list[Part]) -> None:
    """Compute warps begin early only behind a task of theirs, and when the task waits for no event."""
    if not len(streams.hops) == len(streams.early) == len(program.queue):
        raise UnsoundPlan(f"{len(streams.hops)} hops and {len(streams.early)} early marks for a queue of {len(program.queue)}")
    if (streams.hops > MOST_HOPS).any():
        raise UnsoundPlan(f"hops up to {streams.hops.max()}; they count exchanges, {MOST_HOPS} at most")
    computes = _computing(program, streaming)[program.queue]
    follows = np.concatenate([[False], computes[:-1]])
    follows[program.bounds[:-1][np.diff(program.bounds.astype(np.int64)) > 0]] = False
    wrong = np.flatnonzero(streams.early & ~(follows & (program.tasks["waits"][program.queue] == 0)))
    if len(wrong):
        task = int(program.queue[wrong[0]])
        raise unsound(program, f"task {task} is to begin early, but it waits, or stands behind no task that computes", task)


def _computing(program: Program, streaming: list[Part]) -> np.ndarray:
    """Of each task, whether it has a part for compute warps."""
    computes = np.zeros(len(program.tasks), np.bool_)
    for part in streaming:
        computes[slice(*part.tasks)] = _asked(part).computes
    return computes


def _positions(streaming: list[Part]) -> dict[int, tuple[Storage, int, Box]]:
    """Of each task for which rows of a cache come through the ring: where the integer stands that says how many."""
    return {
        task: (at.tensor.storage, at.tensor.layout.offset, at.at(ranges))
        for part in streaming
        if (at := _asked(part).position)
        for task, ranges in enumerate(part.tiling.ranges(), part.tasks[0])
    }


def _records(program: Program, streams: Streams, streaming: list[Part], places: dict[int, Place]) -> None:
    """Each worker's records are its computing tasks, in the order of its queue, with their weights."""
    computes, positions = _computing(program, streaming), _positions(streaming)
    bounds = streams.bounds.astype(np.int64)
    if len(bounds) != program.num_workers + 1 or bounds[0] or bounds[-1] != len(streams.records) or (np.diff(bounds) < 0).any():
        raise UnsoundPlan(f"records of {program.num_workers} workers are bounded by {bounds.tolist()}")
    for worker, ((begin, end), (lo, hi)) in enumerate(zip(pairwise(program.bounds.tolist()), pairwise(bounds.tolist()), strict=True)):
        queue = program.queue[begin:end].tolist()
        awaits = {positions[task]: task for task in reversed(queue) if task in positions}.values()  # the first to read each
        marks = {task: (int(streams.early[begin + place]), int(task in awaits)) for place, task in enumerate(queue)}
        wanted = [
            (*places.get(task, (0, 0)), place, int(program.tasks["body"][task]), *marks[task])
            for place, task in enumerate(queue)
            if computes[task]
        ]
        found = streams.records[lo:hi].tolist()
        if found != wanted:
            at = next((i for i, pair in enumerate(zip(found, wanted, strict=False)) if pair[0] != pair[1]), min(len(found), len(wanted)))
            has, needs = (str(r[at]) if at < len(r) else "none" for r in (found, wanted))
            tasks = [queue[wanted[at][2]]] if at < len(wanted) else []
            sentence = f"record {at} of worker {worker} is {has}; its queue asks for {needs}"
            sentence += ": first slot, fragments, place, body, early, awaits"
            raise unsound(program, sentence, *tasks)
