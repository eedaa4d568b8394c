"""place: storages that are alive together never share a byte, and the arena holds them all."""

from collections.abc import Sequence
from itertools import combinations, pairwise

import torch
from hypothesis import given
from hypothesis import strategies as st
from oracle import interpreted, machine, raised
from torch import nn

from mkc.ir.dtype import DType
from mkc.ir.graph import Graph, Kind, Node, Storage, Tensor
from mkc.ir.layout import contiguous
from mkc.passes.place import ALIGNMENT, arena_bytes, place, words_bytes


@st.composite
def graphs(draw: st.DrawFn, kinds: Sequence[Kind] = (Kind.ARENA,)) -> Graph:
    """Nodes that write tensors of many sizes at random, and read those that were written."""
    sizes = draw(st.lists(st.integers(1, 3000), min_size=1, max_size=8))
    storages = [Storage(f"t{i}", n, draw(st.sampled_from(kinds))) for i, n in enumerate(sizes)]
    tensors = [Tensor(DType.U8, contiguous((s.nbytes,)), s) for s in storages]
    nodes: list[Node] = []
    for number in range(draw(st.integers(1, 10))):
        written = list(dict.fromkeys(t for node in nodes for t in node.outputs))
        reads = draw(st.lists(st.sampled_from(written), max_size=3)) if written else []
        writes = draw(st.lists(st.sampled_from(tensors), min_size=1, max_size=2, unique=True))
        nodes.append(Node(f"n{number}", "fake", tuple(reads), tuple(writes)))
    return Graph(tuple(nodes), (), ())


def lives(graph: Graph) -> dict[Storage, tuple[int, int]]:
    touched: dict[Storage, list[int]] = {}
    for number, node in enumerate(graph.nodes):
        for tensor in (*node.inputs, *node.outputs):
            touched.setdefault(tensor.storage, []).append(number)
    return {storage: (min(at), max(at)) for storage, at in touched.items()}


@given(graphs())
def test_storages_that_live_together_lie_apart(graph: Graph) -> None:
    alive = lives(place(graph))
    for (a, (born, dies)), (b, (begins, ends)) in combinations(alive.items(), 2):
        apart = a.base + a.nbytes <= b.base or b.base + b.nbytes <= a.base
        assert apart or dies < begins or ends < born


@given(graphs())
def test_placing_moves_storages_and_changes_nothing_else(graph: Graph) -> None:
    placed = place(graph)
    for before, after in zip(graph.nodes, placed.nodes, strict=True):
        for old, new in zip((*before.inputs, *before.outputs), (*after.inputs, *after.outputs), strict=True):
            assert (old.layout, old.storage.name, old.storage.nbytes) == (new.layout, new.storage.name, new.storage.nbytes)
            assert new.storage.base % ALIGNMENT == 0
            assert new.storage.base + new.storage.nbytes <= arena_bytes(placed)


@given(graphs())
def test_the_arena_is_no_larger_than_all_storages_side_by_side(graph: Graph) -> None:
    placed = place(graph)
    assert arena_bytes(placed) <= sum(-(-s.nbytes // ALIGNMENT) * ALIGNMENT for s in lives(placed))


@given(graphs(kinds=(Kind.ARENA, Kind.WORDS)))
def test_words_share_with_nobody(graph: Graph) -> None:
    placed = place(graph)
    words = sorted((s for s in placed.storages if s.kind is Kind.WORDS), key=lambda s: s.base)
    assert all(a.base + a.nbytes <= b.base for a, b in pairwise(words))
    assert all(s.base % ALIGNMENT == 0 and s.base + s.nbytes <= words_bytes(placed) for s in words)
    assert len(placed.storages) == len(graph.storages)


# ---- states


class Kept(nn.Module):
    """What becomes the state is looked at as well."""

    def forward(self, x: torch.Tensor, state: torch.Tensor) -> torch.Tensor:
        made = x.argmax(-1)
        state.copy_(made)
        return made + 1


class KeptLate(nn.Module):
    """The state is looked at before it changes, and after what it will be is known."""

    def forward(self, x: torch.Tensor, state: torch.Tensor) -> torch.Tensor:
        made = x.argmax(-1)
        seen = (state + 1) * made
        state.copy_(made)
        return seen


def kept(model: nn.Module) -> list[str]:
    """The operators of the placed plan, once it has been seen to mean what the model does."""
    x, states = torch.randn(3, 9), [torch.arange(3), torch.arange(3)]
    run = interpreted([raised(model, x, states[0])], machine(2))
    (told,) = run([x, states[0]])
    assert torch.equal(told, model(x, states[1]))
    assert torch.equal(*states)
    return [node.op for node in run.compilation.sections[0].placed.nodes]


def test_what_a_state_will_hold_is_made_in_it_and_read_from_it() -> None:
    assert kept(Kept()) == ["argmax", "elementwise"]


def test_a_state_that_is_still_looked_at_is_written_later() -> None:
    assert kept(KeptLate()) == ["argmax", "elementwise", "elementwise"]
