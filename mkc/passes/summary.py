"""Schedules, Program -> text. The few lines at the top of a page that say what the kernel does."""

from collections import Counter
from collections.abc import Sequence

from mkc.ir.program import Program
from mkc.ir.tasks import Schedule


def summarise(schedules: Sequence[Schedule], program: Program) -> str:
    """Tasks, events and predicted times by section, and where the tasks come from."""
    lines = [f"{len(program.tasks)} tasks, {program.num_events} events, {program.num_workers} workers"]
    for number, schedule in enumerate(schedules):
        tasks = schedule.events.tasks
        ops = Counter(node.op for node in tasks.graph.nodes)
        kinds = ", ".join(f"{count} {op}" for op, count in sorted(ops.items()))
        name = " ".join(tasks.graph.name.split())  # the user's, and so anything
        lines.append(f"section {number}, {name}: {kinds}")
        lines.append(f"  {len(tasks.tasks)} tasks, {schedule.policy}, {schedule.predicted_ns / 1e3:.1f} us a step predicted")
    return "\n".join(lines)
