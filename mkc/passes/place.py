"""Graph -> Graph. Every tensor of ours gets its bytes; in the arena they share them where one is done with before the other begins."""

from collections.abc import Iterable
from dataclasses import dataclass, replace

from mkc.ir.graph import Graph, Kind, Storage, Tensor
from mkc.passes._home import at_home

ALIGNMENT = 256  # bytes; a whole cache line everywhere, and what bulk copies ask for


def place(graph: Graph) -> Graph:
    """Sharing adds no waiting: the dataflow itself must already put every user of one tensor before the other's writers.

    Published words are never shared: a reader knows them by their use counts, which another tensor's would confuse.
    """
    graph = at_home(graph)
    lives = _lives(graph)
    placed: list[tuple[Storage, int]] = []  # with its base
    for storage in sorted(lives, key=lambda s: -s.nbytes):
        alive = [(base, s) for s, base in placed if lives[s].meets(lives[storage])]
        placed.append((storage, _first_gap(storage.nbytes, alive)))
    bases = dict(placed) | _side_by_side(s for s in graph.storages if s.kind is Kind.WORDS)

    def move(tensors: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return tuple(
            replace(t, storage=replace(t.storage, base=bases[t.storage])) if t.storage in bases else t for t in tensors
        )

    nodes = tuple(replace(n, inputs=move(n.inputs), outputs=move(n.outputs)) for n in graph.nodes)
    return replace(graph, nodes=nodes)


def arena_bytes(graph: Graph) -> int:
    """How large the arena of a placed graph is."""
    return max((_aligned(s.start + s.nbytes) for s in graph.storages if s.kind is Kind.ARENA), default=0)


def words_bytes(graph: Graph) -> int:
    """How many bytes of words a placed graph publishes."""
    return max((_aligned(s.start + 2 * s.nbytes) for s in graph.storages if s.kind is Kind.WORDS), default=0)


def _side_by_side(storages: Iterable[Storage]) -> dict[Storage, int]:
    bases, at = {}, 0
    for storage in storages:
        bases[storage] = at
        at += _aligned(2 * storage.nbytes)  # a float32 travels beside its count, in twice the bytes
    return bases


@dataclass(slots=True)
class _Life:
    """Sets of nodes as bits: all that touch a tensor, and those known to be over before any of its writers starts."""

    touched: int = 0
    over: int = -1  # all, until a writer says otherwise

    def meets(self, other: "_Life") -> bool:
        return bool(self.touched & ~other.over and other.touched & ~self.over)


def _lives(graph: Graph) -> dict[Storage, _Life]:
    """The life of every arena storage."""
    lives: dict[Storage, _Life] = {}
    behind: dict[Storage, int] = {}  # writers of a storage so far, and all that comes before them
    for i, node in enumerate(graph.nodes):
        before = 0
        for tensor in node.inputs:
            if tensor.storage.kind is not Kind.WORDS:  # which put nothing but themselves in order
                before |= behind.get(tensor.storage, 0)
        for tensor in node.outputs:
            behind[tensor.storage] = behind.get(tensor.storage, 0) | before | 1 << i
        for tensor in (*node.inputs, *node.outputs):
            if tensor.storage.kind is Kind.ARENA:
                lives.setdefault(tensor.storage, _Life()).touched |= 1 << i
        for tensor in node.outputs:
            if tensor.storage.kind is Kind.ARENA:
                lives[tensor.storage].over &= before
    return lives


def _first_gap(nbytes: int, alive: list[tuple[int, Storage]]) -> int:
    at = 0
    for base, storage in sorted(alive, key=lambda pair: pair[0]):
        if at + nbytes <= base:
            break
        at = max(at, _aligned(base + storage.nbytes))
    return at


def _aligned(nbytes: int) -> int:
    return -(-nbytes // ALIGNMENT) * ALIGNMENT
