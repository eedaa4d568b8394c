"""The cost model: what a task takes on a target, and so into how many tasks an operator is worth cutting."""

from collections.abc import Sequence
from math import inf

from mkc.ir.target import Target
from mkc.ir.tiling import Axis


def task_ns(target: Target, nbytes: float, flops: float) -> float:
    """Nanoseconds for one worker to do a task that moves `nbytes` and computes `flops`."""
    return target.task_ns + max(nbytes / target.bytes_per_ns, flops / target.flops_per_ns)


def worthwhile_parts(target: Target, nbytes: float, flops: float, ahead: float = inf) -> int:
    """How many workers to spread this work over: no part may be smaller than what handing it over costs.

    `ahead`: bytes that a lane asks for before it needs the first of them.
    """
    work = max(nbytes / _bytes_per_ns(target, ahead), flops / target.flops_per_ns)
    return max(1, min(target.workers, int(work / (target.task_ns + target.event_ns))))


def _bytes_per_ns(target: Target, ahead: float) -> float:
    """What one worker reads: its share of the machine's bandwidth, unless its lanes wait most of the time."""
    return min(target.bytes_per_ns, target.lanes * ahead / target.latency_ns if target.latency_ns else inf)


def cut(
    target: Target,
    extents: Sequence[int],
    nbytes: float,
    flops: float,
    units: Sequence[int] | None = None,
    ahead: float = inf,
) -> tuple[Axis, ...]:
    """Axes over `extents`, outermost first, cut into about as many parts as the work is worth.

    A zero unit keeps an axis whole. Outer axes are cut first: their tiles are the longest runs of memory.
    """
    wanted = worthwhile_parts(target, nbytes, flops, ahead)
    axes = []
    for extent, unit in zip(extents, units or [1] * len(extents), strict=True):
        parts = min(wanted, -(-extent // unit)) if unit else 1
        axes.append(Axis(extent, max(parts, 1), unit or 1))
        wanted = wanted // max(parts, 1)
    return tuple(axes)
