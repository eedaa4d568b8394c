"""Program, section -> Progress. The tasks of a section in an order in which they can run, or UnsoundPlan when they would hang."""

from collections import defaultdict
from collections.abc import Iterator
from itertools import pairwise

import numpy as np

from mkc.errors import UnsoundPlan
from mkc.ir.program import Program
from mkc.ir.published import Polls
from mkc.ir.refusal import unsound

Group = tuple[int, int]  # first wait, how many: tasks with equal waits


class Progress:
    """A section's words as plain lists; its tasks count from 0."""

    def __init__(self, program: Program, section: int, polls: Polls) -> None:
        self.program = program
        self.first, end = program.meanings[section].tasks
        words, tasks = program.sections[section], program.tasks[self.first : end]
        waits = [(event, lag) for event, _, lag in program.waits.tolist()]
        self.is_dynamic = bool(words["num_tasks"])
        self.has_flag = int(words["stop"]) >= 0
        self.signal: list[int] = tasks["signal"].tolist()
        self.group: list[Group] = list(zip(tasks["first_wait"].tolist(), tasks["waits"].tolist(), strict=True))
        self.waits = {(at, count): waits[at : at + count] for at, count in set(self.group)}  # (event, lag)
        self.stop = waits[int(words["first_stop_wait"]) :][: int(words["stop_waits"])]
        self.queues = list(self._queues(int(words["first_queue"])))
        self.producers: dict[int, list[int]] = defaultdict(list)
        for task, event in enumerate(self.signal):
            if event >= 0:
                self.producers[event].append(task)
        self.polls = polls
        self.published: dict[int, list[int]] = defaultdict(list)  # by task, the groups that it is of
        for group, (tasks, _) in enumerate(polls.groups):
            for task in tasks.tolist():
                self.published[task].append(group)
        self.order = self._by_ticket() if self.is_dynamic else self._by_turns()

    def _queues(self, first: int) -> Iterator[list[int]]:
        count = 1 if self.is_dynamic else self.program.num_workers
        for lo, hi in pairwise(self.program.bounds[first : first + count + 1].tolist()):
            yield (self.program.queue[lo:hi].astype(np.int64) - self.first).tolist()

    def unpublished(self, task: int, missing: list[int]) -> int | None:
        """A group of whose words this task waits for some."""
        return next((group for group in self.polls.possible.get(task, ()) if missing[group]), None)

    def awaited(self, task: int) -> list[int]:
        """The events of this step that a task waits for."""
        return [event for event, lag in self.waits[self.group[task]] if not lag]

    def _by_ticket(self) -> list[int]:
        """Whoever holds the oldest unfinished ticket must be able to go on, so nobody may wait for a later one."""
        (queue,) = self.queues
        ticket = {task: i for i, task in enumerate(queue)}
        last = {event: max(tasks, key=ticket.__getitem__) for event, tasks in self.producers.items()}
        for task in queue:
            late = next((last[e] for e in self.awaited(task) if ticket[last[e]] >= ticket[task]), None)
            if late is not None:
                raise self.refusal(f"ticket {ticket[task]}, task {{}}, waits for task {{}}, whose ticket is {ticket[late]}", task, late)
        return queue

    def _by_turns(self) -> list[int]:
        """Workers run as far as they can, over and over, until all queues are empty."""
        missing = {event: len(tasks) for event, tasks in self.producers.items()}
        at, ready = [0] * len(self.queues), list(range(len(self.queues)))
        asleep: dict[int, list[int]] = defaultdict(list)  # workers, by the event they wait for
        unsaid = [len(tasks) for tasks, _ in self.polls.groups]
        polling: dict[int, list[int]] = defaultdict(list)  # workers, by the group they wait for
        done: list[int] = []
        while ready:
            worker = ready.pop()
            for task in self.queues[worker][at[worker] :]:
                unmet = next((event for event in self.awaited(task) if missing[event]), None)
                if unmet is not None:
                    asleep[unmet].append(worker)
                    break
                unread = self.unpublished(task, unsaid)
                if unread is not None:
                    polling[unread].append(worker)
                    break
                done.append(task)
                at[worker] += 1
                if (event := self.signal[task]) >= 0:
                    missing[event] -= 1
                    ready += [] if missing[event] else asleep.pop(event, [])
                for group in self.published.get(task, ()):
                    unsaid[group] -= 1
                    ready += [] if unsaid[group] else polling.pop(group, [])
        if len(done) < len(self.signal):
            raise self._circle(set(done))
        return done

    def _circle(self, done: set[int]) -> UnsoundPlan:
        """Follow who waits for whom until somebody comes up again."""
        left = [[task for task in queue if task not in done] for queue in self.queues]
        head_of = {task: queue[0] for queue in left for task in queue}
        path, task = list[int](), next(iter(head_of.values()))
        while task not in path:
            path.append(task)
            awaited = [p for event in self.awaited(task) for p in self.producers[event]]
            awaited += [int(p) for group in self.polls.possible.get(task, ()) for p in self.polls.groups[group][0]]
            task = head_of[next(p for p in awaited if p not in done)]
        circle = [*path[path.index(task) :], task]
        return self.refusal(f"tasks wait for each other in a circle: {', for '.join(['{}'] * len(circle))}", *circle)

    def refusal(self, sentence: str, *tasks: int) -> UnsoundPlan:
        """`sentence` has a `{}` for the number of each task."""
        numbers = [self.first + task for task in tasks]
        return unsound(self.program, sentence.format(*numbers), *numbers)
