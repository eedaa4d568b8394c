"""Schedule -> Streams. What each worker's loaders bring: the weights of its tasks, in the order of its queue."""

from collections.abc import Mapping
from itertools import pairwise

import numpy as np

from mkc.errors import PlanError
from mkc.ir.graph import Graph, Kind, Node, Storage
from mkc.ir.program import FIXED_BYTES, SLOT_BYTES, STREAM, Pack, Streams, Words, passing, slots
from mkc.ir.span import Box
from mkc.ir.target import Target
from mkc.ir.tasks import Schedule, Tasks
from mkc.ops import registry

STATIC_BYTES = 18 << 10  # that portable bodies may take
Place = tuple[Storage, int, Box]
RESIDENT = 5  # one in so many bytes of the last cache is for weights: a GPU with two halves of it may keep what it reads in both
LEAST_SLOTS = 2  # one that is read, and one on its way


def pack(schedule: Schedule, bodies: np.ndarray) -> Streams | None:
    """`bodies` numbers the body of each task. None when no operator streams."""
    tasks = schedule.events.tasks
    if not any(registry()[node.op].streaming for node in tasks.graph.nodes):
        return None
    if schedule.policy != "static":
        raise PlanError("a streaming worker knows its tasks in advance: it needs the policy static")
    offsets, packs, nbytes = _places(tasks)
    records, bounds, hops, early = _told(schedule, bodies, offsets)
    input_bytes, room = _input_bytes(tasks.graph), ring_slots(tasks.graph, schedule.target)
    if room < LEAST_SLOTS:
        raise PlanError(f"an input of {input_bytes} bytes leaves no room for a ring of weights; compile with streams=False")
    resident_from, resident_slots = _resident(records["fragments"], bounds, schedule.target)
    return Streams(
        records=records,
        bounds=bounds,
        hops=hops,
        early=early,
        packs=packs,
        nbytes=nbytes,
        ring_slots=room,
        input_bytes=input_bytes,
        shared_bytes=room * (SLOT_BYTES + 16) + FIXED_BYTES + input_bytes,
        resident_from=resident_from,
        resident_slots=resident_slots,
        paced=schedule.target.bulk_copies,
    )


def _told(schedule: Schedule, bodies: np.ndarray, offsets: Mapping[int, tuple[int, int]]) -> tuple[Words, Words, Words, Words]:
    """Records, where each worker's begin and end, and for each place in a queue hops and whether it begins early. `offsets` says where the
    weights of a task are, and how many fragments."""
    tasks = schedule.events.tasks
    nodes, depths = tasks.graph.nodes, _depths(tasks.graph)
    streaming = [registry()[node.op].streaming for node in nodes]
    records: list[tuple[int, ...]] = []
    bounds, hops, early = [0], [], []
    for queue in schedule.queues:
        last, follows = None, False  # the node that this worker last streamed, and whether that was just now
        known = set[Place | None]()  # positions that it has read in this step
        for place, t in enumerate(queue):
            node = tasks.tasks[t].node
            op = streaming[node]
            least = 0 if op is not None and not op.computes else 1  # what only talks may find all that it reads
            hops.append(1 if last is None else max(least, depths[node] - depths[last]))
            early.append(follows and not schedule.waits[t] and last is not None and not _hands_on(nodes[last], nodes[node]))
            follows = op is not None and op.computes
            if follows:
                position = _position(tasks, t)
                awaits = position is not None and position not in known
                known.add(position)
                offset, taken = offsets.get(t, (0, 0))
                records.append((offset // SLOT_BYTES, taken, place, int(bodies[t]), early[-1], awaits))
                last = node
        bounds.append(len(records))
    return np.array(records, STREAM), np.array(bounds, np.uint32), np.array(hops, np.uint32), np.array(early, np.bool_)


def _resident(fragments: Words, bounds: Words, target: Target) -> tuple[int, int]:
    """From how many fragments on a share is a long one, and how many slots of each the last cache keeps. Reading a long share is bound by
    memory, and short ones wait for each other."""
    long = int(fragments.max(initial=0)) // 2 + 1
    most = max((int((fragments[begin:end] >= long).sum()) for begin, end in pairwise(bounds.tolist())), default=0)
    return long, round(target.cache_bytes / RESIDENT / (target.workers * SLOT_BYTES)) // max(most, 1)


def _position(tasks: Tasks, task: int) -> Place | None:
    """Where the integer stands that says how many rows of a cache come through the ring for this task."""
    node, ranges = tasks.tasks[task].node, tasks.tasks[task].ranges
    op = registry()[tasks.graph.nodes[node].op].streaming
    if op is None or op.position is None:
        return None
    tile_map = tasks.tilings[node].imaps[op.position]
    return tile_map.tensor.storage, tile_map.tensor.layout.offset, tile_map.at(ranges)


def ring_slots(graph: Graph, target: Target) -> int:
    """How many slots of weights fit into shared memory beside what its streams ask for; LEAST_SLOTS must."""
    return (target.scratch_bytes - STATIC_BYTES - FIXED_BYTES - _input_bytes(graph)) // (SLOT_BYTES + 16)


def _input_bytes(graph: Graph) -> int:
    streaming = ((node, registry()[node.op].streaming) for node in graph.nodes)
    return max((op.input_bytes(node) for node, op in streaming if op), default=0)


def _hands_on(node: Node, then: Node) -> bool:
    """True when one finds in memory, not in published words, what the other made."""
    made = {t.storage for t in node.outputs if t.storage.kind is not Kind.WORDS}
    return not made.isdisjoint(t.storage for t in then.inputs)


def _depths(graph: Graph) -> list[int]:
    """How many exchanges of published words lie before each node."""
    depth: dict[Storage, int] = {}
    depths = []
    for node in graph.nodes:
        depths.append(max((depth.get(t.storage, -1) + 1 for t in node.inputs), default=0))
        depth |= {t.storage: depths[-1] for t in node.outputs if t.storage.kind is Kind.WORDS}
    return depths


def _places(tasks: Tasks) -> tuple[dict[int, tuple[int, int]], tuple[Pack, ...], int]:
    """For each task that has weights its (offset, fragments), how they get there, and the bytes in all."""
    places: dict[int, tuple[int, int]] = {}
    packs: list[Pack] = []
    end = 0
    for i, node in enumerate(tasks.graph.nodes):
        op = registry()[node.op].streaming
        if op is None or not (weights := op.weights(node)):
            continue
        shares = []
        for t, (first, count, fragments, _, _, abreast) in enumerate(passages := op.passages(node, tasks.tilings[i]), tasks.first[i]):
            places[t] = end, passing(count, fragments, abreast)
            shares.append((first, count, end))
            end += slots(places[t][1]) * SLOT_BYTES
        _, _, fragments, chunk, group, abreast = passages[0]
        packs.append(Pack(weights, bool(node["gated"]), fragments, tuple(shares), chunk, group, abreast))
    return places, tuple(packs), end
