"""Graph -> Graph. Every arena tensor gets its bytes; tensors that are never alive together share them."""

from dataclasses import replace

from mkc.ir.graph import Graph, Kind, Storage, Tensor

ALIGNMENT = 256  # bytes; a whole cache line everywhere, and what bulk copies ask for


def place(graph: Graph) -> Graph:
    lifetimes = _lifetimes(graph)
    placed: list[tuple[Storage, int]] = []  # with its base
    for storage in sorted(lifetimes, key=lambda s: (-s.nbytes, lifetimes[s])):
        alive = [(base, s) for s, base in placed if _together(lifetimes[s], lifetimes[storage])]
        placed.append((storage, _first_gap(storage.nbytes, alive)))
    bases = dict(placed)

    def move(tensors: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return tuple(
            replace(t, storage=replace(t.storage, base=bases[t.storage])) if t.storage in bases else t for t in tensors
        )

    nodes = tuple(replace(n, inputs=move(n.inputs), outputs=move(n.outputs)) for n in graph.nodes)
    return replace(graph, nodes=nodes)


def arena_bytes(graph: Graph) -> int:
    """How large the arena of a placed graph is."""
    return max((_aligned(s.base + s.nbytes) for s in graph.storages if s.kind is Kind.ARENA), default=0)


def _lifetimes(graph: Graph) -> dict[Storage, tuple[int, int]]:
    """Arena storages and the first and last node that touch them, both included."""
    lives: dict[Storage, tuple[int, int]] = {}
    for i, node in enumerate(graph.nodes):
        for tensor in (*node.inputs, *node.outputs):
            if tensor.storage.kind is Kind.ARENA:
                lives[tensor.storage] = (lives.get(tensor.storage, (i, i))[0], i)
    return lives


def _together(a: tuple[int, int], b: tuple[int, int]) -> bool:
    return a[0] <= b[1] and b[0] <= a[1]


def _first_gap(nbytes: int, alive: list[tuple[int, Storage]]) -> int:
    at = 0
    for base, storage in sorted(alive, key=lambda pair: pair[0]):
        if at + nbytes <= base:
            break
        at = max(at, _aligned(base + storage.nbytes))
    return at


def _aligned(nbytes: int) -> int:
    return -(-nbytes // ALIGNMENT) * ALIGNMENT
