"""Program, tasks -> UnsoundPlan. A refusal shows the lines of the plan around the fault."""

import numpy as np

from mkc.errors import UnsoundPlan
from mkc.ir.program import Program


def unsound(program: Program, sentence: str, *tasks: int) -> UnsoundPlan:
    """What is wrong in a sentence, then each task between its neighbours in its queue."""
    return UnsoundPlan("\n".join([sentence, *(line for task in dict.fromkeys(tasks) for line in _around(program, task))]))


def _around(program: Program, task: int) -> list[str]:
    places = np.flatnonzero(program.queue == task)
    if not len(places):
        return ["in no queue:", f"  > {program.line(task)}"]
    at = int(places[0])
    starts = [bound for bound in program.bounds.tolist() if bound <= at]
    stops = [bound for bound in program.bounds.tolist() if bound > at]
    lo, hi = max(starts, default=0), min(stops, default=len(program.queue))
    nearby = (int(t) for t in program.queue[max(lo, at - 1) : min(hi, at + 2)])
    lines = (f"  {'>' if other == task else ' '} {program.line(other)}" for other in nearby if other < len(program.tasks))
    return [f"queue {len(starts) - 1}, place {at - lo + 1} of {hi - lo}:", *lines]
