"""The task graph in networkx, which also serves as the oracle for our own longest way."""

from collections import Counter

import networkx as nx
import pytest

from mkc.compiler import Compilation, Lowering, compile_graphs
from mkc.inspect.taskgraph import critical_path, operators, owners, to_networkx


@pytest.fixture(params=["mlp", "deep", "wide"])
def lowering(request: pytest.FixtureRequest) -> Lowering:
    return request.getfixturevalue(request.param).sections[0]


def test_edges_are_the_expanded_ranges(lowering: Lowering) -> None:
    graph = to_networkx(lowering)
    for task, ranges in enumerate(lowering.linked.before):
        assert set(graph.predecessors(task)) == {p for lo, hi in ranges for p in range(lo, hi)}


def test_tasks_know_their_name_operator_worker_and_time(mlp: Compilation) -> None:
    lowering = mlp.sections[0]
    facts = to_networkx(lowering).nodes[1]
    assert facts["name"] == lowering.tasks.name(1)
    assert (facts["op"], facts["path"]) == ("linear", "layers.0")
    assert 1 in lowering.schedule.queues[facts["worker"]]
    assert facts["ns"] > mlp.target.task_ns


def test_a_shared_queue_gives_a_task_to_nobody_in_particular(mlp: Compilation) -> None:
    (lowering,) = compile_graphs([mlp.sections[0].graph], mlp.target, "dynamic").sections
    assert set(owners(lowering.schedule)) == {None}


def test_operators_are_the_condensed_task_graph(lowering: Lowering) -> None:
    tasks, graph = to_networkx(lowering), operators(lowering)
    between = [(tasks.nodes[a]["node"], tasks.nodes[b]["node"]) for a, b in tasks.edges]
    across = [pair for pair in between if pair[0] != pair[1]]
    assert {(a, b): n for a, b, n in graph.edges(data="edges")} == Counter(across)
    assert sum(n for _, n in graph.nodes(data="tasks")) == len(tasks)


def test_the_critical_path_is_the_longest_way_that_networkx_finds(lowering: Lowering) -> None:
    graph, target = to_networkx(lowering), lowering.schedule.target
    for a, b in graph.edges:
        handover = target.event_ns if graph.nodes[a]["worker"] != graph.nodes[b]["worker"] else 0.0
        graph.edges[a, b]["weight"] = handover + graph.nodes[b]["ns"]
    expected = max(
        nx.dag_longest_path_length(graph.subgraph([s, *nx.descendants(graph, s)])) + graph.nodes[s]["ns"]
        for s in [n for n in graph if not graph.in_degree(n)][:3]
    )
    assert critical_path(lowering).ns == pytest.approx(expected)


def test_the_critical_path_follows_edges_and_is_no_longer_than_the_schedule(lowering: Lowering) -> None:
    path, graph = critical_path(lowering), to_networkx(lowering)
    assert nx.is_path(graph, path.tasks)
    assert path.ns <= lowering.schedule.predicted_ns + 1e-6
    assert f"{len(path.tasks)} tasks in a row" in str(path)
