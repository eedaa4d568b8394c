"""Graphs -> Compilation. The compiler is a sentence: fuse, (stream,) place, tile, link, signal, schedule, encode, render."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from mkc import config
from mkc.ir.check import check
from mkc.ir.graph import Graph
from mkc.ir.program import Program
from mkc.ir.target import Target
from mkc.ir.tasks import EventGraph, Schedule, TaskGraph, Tasks
from mkc.passes.encode import encode
from mkc.passes.fuse import fuse
from mkc.passes.link import link
from mkc.passes.place import place
from mkc.passes.render import Source, render
from mkc.passes.schedule import schedule
from mkc.passes.signal import signal
from mkc.passes.stream import stream
from mkc.passes.summary import summarise
from mkc.passes.tile import tile


@dataclass(frozen=True, slots=True)
class Lowering:
    """One graph at every level, down to its schedule."""

    graph: Graph
    fused: Graph
    placed: Graph
    tasks: Tasks
    linked: TaskGraph
    events: EventGraph
    schedule: Schedule


@dataclass(frozen=True, slots=True)
class Compilation:
    """Every stage of one kernel. A kernel of several graphs runs them as sections, one after another."""

    sections: tuple[Lowering, ...]
    program: Program
    source: Source
    target: Target


def lower(graph: Graph, target: Target, policy: str = "static") -> Lowering:
    """One graph through all passes but the last two."""
    fused = stream(fuse(graph), target) if target.streams else fuse(graph)
    placed = place(fused)
    tasks = tile(placed, target)
    linked = link(tasks, target.workers)
    events = signal(linked)
    return Lowering(graph, fused, placed, tasks, linked, events, schedule(events, target, policy))


def compile_graphs(graphs: Sequence[Graph], target: Target, policy: str = "static") -> Compilation:
    """Graphs that become the sections of one kernel, in this order.

    Weights stream where a worker's whole queue is known in advance: in a kernel of one section, with queues of its own.
    """
    target = replace(target, streams=target.streams and len(graphs) == 1 and policy == "static")
    sections = tuple(lower(graph, target, policy) for graph in graphs)
    program = encode([section.schedule for section in sections])
    if config.checks():
        check(program, target)
    source = render(program, target, summary=summarise([s.schedule for s in sections], program))
    return Compilation(sections, program, source, target)
