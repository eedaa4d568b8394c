"""The cost model: what a task takes on a target, and so into how many tasks an operator is worth cutting."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import inf

from mkc.ir.target import Target
from mkc.ir.tiling import Axis


@dataclass(frozen=True, slots=True)
class Costs:
    """What was measured of a machine. Rates are bytes in a nanosecond, times nanoseconds."""

    alone: float  # what one worker reads while the others rest
    together: float  # what all of them read
    task_ns: float
    event_ns: float

    def on(self, target: Target) -> Target:
        """The target with these in the place of guesses. What a worker computes, and how long a load takes, stay guesses."""
        rate = min(self.alone, self.together / target.workers)
        return replace(target, bytes_per_ns=rate, task_ns=self.task_ns, event_ns=self.event_ns)


def task_ns(target: Target, nbytes: float, flops: float) -> float:
    """Nanoseconds for one worker to do a task that moves `nbytes` and computes `flops`."""
    return target.task_ns + max(nbytes / target.bytes_per_ns, flops / target.flops_per_ns)


def worthwhile_parts(target: Target, nbytes: float, flops: float, ahead: float = inf) -> int:
    """How many tasks to spread this work over: no part may be smaller than what handing it over costs, times the grain.

    `ahead`: bytes that a lane asks for before it needs the first of them.
    """
    work = max(nbytes / _bytes_per_ns(target, ahead), flops / target.flops_per_ns)
    least = target.choices.grain * (target.task_ns + target.event_ns)
    return max(1, min(target.workers * target.choices.tasks_each, int(work / least)))


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
