"""Lowering -> SVG. The operators of a graph, what each awaits, and which of them the longest chain goes through."""

from collections import Counter
from collections.abc import Mapping
from itertools import pairwise

import networkx as nx

from mkc.compiler import Lowering
from mkc.inspect.colours import colours as colours_of
from mkc.inspect.layers import Drawing, Edge, Sizes, Spot, draw
from mkc.inspect.taskgraph import critical_path, operators
from mkc.inspect.text import count, time
from mkc.passes.render import render_template

Point = tuple[float, float]

SIZES = Sizes()
ROW = 20  # of the legend, in points
LETTERS = 33  # of a path that fit in a box


def picture(lowering: Lowering, colours: Mapping[str, str] | None = None) -> str:
    """A self-contained SVG. `colours` by operator, where other pictures of the kernel should have the same."""
    graph = operators(lowering)
    palette = colours or colours_of(node.op for node in lowering.tasks.graph.nodes)
    drawing = draw(len(graph), graph.edges, SIZES)
    path = critical_path(lowering)
    chain = [lowering.tasks.tasks[task].node for task in path.tasks]
    steep = {pair for pair in pairwise(chain) if pair[0] != pair[1]}
    width = max(drawing.width, 760.0)
    legend = _legend(graph, palette, width - 48)
    top = 104 + ROW * (len({item["y"] for item in legend}) - 1)
    return render_template(
        "inspect/graph.svg.j2",
        title=f"{lowering.graph.name}: {count(len(graph), 'operator')} as {count(len(lowering.tasks.tasks), 'task')}",
        subtitle=f"{lowering.schedule.target}; {time(lowering.schedule.predicted_ns)} a step predicted, of which the longest chain "
        f"(dark) takes {time(path.ns)} in {count(len(path.tasks), 'task')}",
        width=round(width),
        height=round(drawing.height + top + 40),
        top=top,
        legend=legend,
        lines=_lines(drawing, steep),
        boxes=[_box(graph.nodes[n], drawing.places[n, drawing.rows[n]], palette, n in chain) for n in graph],
        box_width=SIZES.width,
        box_height=SIZES.height,
    )


def _legend(graph: nx.DiGraph, palette: Mapping[str, str], width: float) -> list[dict[str, object]]:
    """Operators in rows no wider than `width`, with their numbers."""
    items: list[dict[str, object]] = []
    x, y = 0.0, 0.0
    for op, number in sorted(Counter(op for _, op in graph.nodes(data="op")).items()):
        text = f"{op} {number:,}"
        if x and x + 7 * len(text) > width:
            x, y = 0.0, y + ROW
        items.append({"x": round(x), "y": y, "colour": palette[op], "text": text})
        x += 36 + 6.2 * len(text)
    return items


def _box(
    facts: Mapping[str, object], place: tuple[float, float], palette: Mapping[str, str], critical: bool
) -> dict[str, object]:
    x, y = place
    op, path, ns, tasks = str(facts["op"]), str(facts["path"]), facts["ns"], facts["tasks"]
    assert isinstance(ns, float | int)
    assert isinstance(tasks, int)
    return {
        "x": round(x - SIZES.width / 2, 1),
        "y": round(y - SIZES.height / 2, 1),
        "op": op,
        "tasks": count(tasks, "task"),
        "path": path if len(path) <= LETTERS else "…" + path[-LETTERS + 1 :].partition(".")[2],
        "colour": palette[op],
        "critical": critical,
        "hint": f"{facts['name']}\n{facts['text']}\n{count(tasks, 'task')}, {time(ns)} of work predicted",
    }


def _lines(drawing: Drawing, steep: set[Edge]) -> list[dict[str, object]]:
    """The dark ones last, above the others."""
    lines = []
    detours = 0
    dark = {join for edge in steep for join in _along(drawing, edge)}
    for upper, lower in drawing.joins:
        past = (
            "" if drawing.rows[lower[0]] == lower[1] else f"v{SIZES.height}"
        )  # a thread goes on beside the boxes of its row
        if drawing.column(upper) == drawing.column(lower):
            d = _curve(_foot(drawing, upper), _head(drawing, lower))
        else:
            d = _detour(drawing, upper, lower, detours)
            detours += 1
        lines.append({"d": d + past, "critical": (upper, lower) in dark})
    return sorted(lines, key=lambda line: bool(line["critical"]))


def _along(drawing: Drawing, edge: Edge) -> list[tuple[Spot, Spot]]:
    """The joins that an edge runs along: its producer's thread, then into the consumer."""
    before, after = edge
    spots = [
        *((before, row) for row in range(drawing.rows[before], drawing.rows[after])),
        (after, drawing.rows[after]),
    ]
    return list(pairwise(spots))


def _foot(drawing: Drawing, spot: Spot) -> Point:
    x, y = drawing.places[spot]
    return x, y + SIZES.height / 2


def _head(drawing: Drawing, spot: Spot) -> Point:
    x, y = drawing.places[spot]
    return x, y - SIZES.height / 2


def _curve(start: Point, end: Point) -> str:
    (x, y), (to_x, to_y) = start, end
    if abs(x - to_x) < 0.5:
        return f"M{x:.1f} {y:.1f}V{to_y:.1f}"
    half = (to_y - y) / 2
    return f"M{x:.1f} {y:.1f}C{x:.1f} {y + half:.1f} {to_x:.1f} {to_y - half:.1f} {to_x:.1f} {to_y:.1f}"


def _detour(drawing: Drawing, upper: Spot, lower: Spot, number: int) -> str:
    """From the foot of one column to the head of the next, through the gutter between them."""
    (x, y), (to_x, to_y) = _foot(drawing, upper), _head(drawing, lower)
    left = min(at[0] for spot, at in drawing.places.items() if drawing.column(spot) == drawing.column(lower))
    side = SIZES.width / 2 + SIZES.gutter / 2
    lane = 4.0 * (number % 6) - 10
    gutter, foot, head = left - side + lane, drawing.height + 12 + lane, -12 + lane
    corner = 6 if gutter > x else -6
    return (
        f"M{x:.1f} {y:.1f}V{foot - 6:.1f}q0 6 {corner} 6H{gutter - 6:.1f}q6 0 6 -6V{head + 6:.1f}q0 -6 6 -6"
        f"H{to_x - 6:.1f}q6 0 6 6V{to_y:.1f}"
    )
