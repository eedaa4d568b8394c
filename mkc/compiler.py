"""Graphs -> Compilation. The compiler is a sentence: fuse, (stream,) place, tile, link, signal, schedule, encode, render."""

from collections.abc import Sequence
from dataclasses import astuple, dataclass, replace
from functools import cached_property

from mkc import cache, config, garbage
from mkc.ir import stored
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


@dataclass(frozen=True)
class Compilation:
    """Every stage of one kernel. A kernel of several graphs runs them as sections, one after another."""

    graphs: tuple[Graph, ...]
    program: Program
    source: Source
    target: Target
    policy: str

    @cached_property
    def sections(self) -> tuple[Lowering, ...]:
        """The levels between each graph and the program, which are made again where the plan was kept: they are for looking at."""
        return tuple(lower(graph, self.target, self.policy) for graph in self.graphs)


def lower(graph: Graph, target: Target, policy: str = "static") -> Lowering:
    """One graph through all passes but the last two."""
    fused = stream(fuse(graph), target) if target.streams else fuse(graph)
    placed = place(fused)
    tasks = tile(placed, target)
    linked = link(tasks, target.workers)
    events = signal(linked)
    return Lowering(graph, fused, placed, tasks, linked, events, schedule(events, target, policy))


def compile_graphs(graphs: Sequence[Graph], target: Target, policy: str = "static") -> Compilation:
    """Graphs that become the sections of one kernel, in this order; planned once on a machine, unless MKC_KEEP=0.

    Weights stream where a worker's whole queue is known in advance: in a kernel of one section, with queues of its own.
    """
    target = replace(target, streams=target.streams and len(graphs) == 1 and policy == "static")
    if not (config.keeps() and config.checks()):
        return plan(graphs, target, policy)
    key = repr((cache.source_digest(), policy, target, *graphs))
    kept = _recalled(key)
    if kept:
        return Compilation(tuple(graphs), *kept, target, policy)
    made = plan(graphs, target, policy)
    cache.keep("plan", key, stored.dumps((made.program, *astuple(made.source))))
    return made


@garbage.rests()
def plan(graphs: Sequence[Graph], target: Target, policy: str) -> Compilation:
    """The sentence itself. The target streams only where it may."""
    sections = tuple(lower(graph, target, policy) for graph in graphs)
    program = encode([section.schedule for section in sections])
    if config.checks():
        check(program, target)
    source = render(program, target, summary=summarise([s.schedule for s in sections], program))
    made = Compilation(tuple(graphs), program, source, target, policy)
    vars(made)["sections"] = sections
    return made


def _recalled(key: str) -> tuple[Program, Source] | None:
    """What was planned, and proved, under this key; None if nothing was, or it is damaged."""
    found = cache.recalled("plan", key)
    if found is None:
        return None
    try:
        program, *texts = stored.loads(found)
    except ValueError:
        return None
    return program, Source(*texts)
