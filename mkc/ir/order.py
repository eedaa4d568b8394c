"""Program, section -> Order. Which task surely comes before which, in one step and in the next, whoever runs ahead.

What orders tasks: a worker's queue, an event that has all its signals, the decision about another step. A wait is taken
to be one for *all* signals of its step; that it is, although counters do not say who signalled, is proved at the end,
from this very order (docs/device-protocol.md, "Why counting is enough"). Published words make no memory visible but
themselves. Yet who finds one knows that whoever published it has done with its earlier tasks, and looks at their inputs no
more: that is an order of its own, `Order.reading`, good for overwriting what was read and for nothing else.
"""

from collections.abc import Iterable
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from mkc.ir.patterns import Ints
from mkc.ir.program import Program
from mkc.ir.progress import Group, Progress
from mkc.ir.published import Polls

Clock = NDArray[np.int32]  # per chain: how many of its tasks are surely over


@dataclass(frozen=True, slots=True, eq=False)
class Order:
    """Tasks of a section, counted from 0, stand in chains, in which each comes after the one before it.

    `now[t]` is the clock of this step when t is over, `ago[t]` that of the step before when t begins, and `decided`
    that of a step when the flag is read that may end the section after it.
    """

    chain: NDArray[np.int32]
    place: NDArray[np.int32]  # from 1
    now: NDArray[np.int32]  # [tasks, chains]
    ago: NDArray[np.int32]
    decided: Clock


@dataclass(frozen=True, slots=True, eq=False)
class Orders:
    """What is complete and visible before a task, and what has at least been read: by polls too."""

    complete: Order
    reading: Order


def orders_of(program: Program, section: int, polls: Polls) -> Orders:
    """Raises UnsoundPlan for waits that could never end, and for counters that could count a later step's signals."""
    progress, loops = Progress(program, section, polls), program.meanings[section].loops
    reading = _order(progress, loops, polls)
    overtaken = _overtaken(progress, reading) if loops else {}
    if overtaken:
        event, (task, other) = next(iter(overtaken.items()))
        sentence = f"task {{}} may signal event {event} of a step before task {{}} has signalled that of the step before"
        raise progress.refusal(sentence, task, other)
    return Orders(_complete(progress, loops) if polls.groups else reading, reading)


def _complete(progress: Progress, loops: bool) -> Order:
    """Polls order nothing here, nor do events that polls alone keep from being overtaken."""
    unsure: set[int] = set()
    while True:
        order = _order(progress, loops, Polls(), unsure)
        more = set(_overtaken(progress, order)) - unsure if loops else set()
        if not more:
            return order
        unsure |= more


def _order(progress: Progress, loops: bool, polls: Polls, unsure: AbstractSet[int] = frozenset()) -> Order:
    now = _Clocks(progress, polls, unsure)
    for task in progress.order:
        now.append(task)
    decided = now.joined(event for event, lag in progress.stop if not lag and event not in unsure)
    if not progress.is_dynamic and progress.queues[0]:
        decided = np.maximum(decided, now.rows[progress.queues[0][-1]])  # worker 0 decides
    ago = now.rows
    if loops:
        later = _Later(progress, polls, unsure, now, decided)
        for task in progress.order:
            later.enter(task, later.before(task))
        ago = later.rows
    return Order(now.chain, now.spot, now.rows, ago, decided)


class _Clocks:
    """The clocks of one step, task by task as they are entered."""

    def __init__(self, progress: Progress, polls: Polls, unsure: AbstractSet[int]) -> None:
        self.progress = progress
        self.polls = polls
        self.unsure = unsure
        self.read: dict[int, Clock] = {}  # by group of those who publish
        count = len(progress.signal)
        queues = [] if progress.is_dynamic else progress.queues
        self.previous = {then: task for queue in queues for task, then in pairwise(queue)}
        self.chain = np.zeros(count, np.int32)
        self.spot = np.zeros(count, np.int32)
        for number, queue in enumerate(queues):
            self.chain[queue] = number
        self.lengths = np.zeros(max(len(queues), 1), np.int32)
        self.rows = np.zeros((count, len(self.lengths)), np.int32)
        self.fired: dict[int, Clock] = {}  # by event
        self.groups: dict[Group, Clock | None] = {}  # tasks with equal waits learn the same from them

    def before(self, task: int) -> Clock:
        """What must be over before a task begins."""
        polled = (self._polled(group) for group in self.polls.sure.get(task, ()))
        return self._joined(self._awaited(self.progress.group[task]), self._ahead(task), *polled)

    def _polled(self, group: int) -> Clock:
        """What was over when each of the group published: also the task itself, if all that it publishes was found."""
        if group not in self.read:
            tasks, whole = self.polls.groups[group]
            self.read[group] = self._publishing(tasks, whole).max(axis=0)
        return self.read[group]

    def _publishing(self, tasks: Ints, whole: NDArray[np.bool_]) -> NDArray[np.int32]:
        rows = self.rows[tasks]
        rows[np.arange(len(tasks)), self.chain[tasks]] -= ~whole
        return rows

    def _ahead(self, task: int) -> Clock | None:
        """The task before it in its queue."""
        return self.rows[self.previous[task]] if task in self.previous else None

    def _awaited(self, group: Group) -> Clock | None:
        if group not in self.groups:
            waits = self.progress.waits[group]
            sure = [wait for wait in waits if wait[0] not in self.unsure]
            self.groups[group] = self._joined(*(self._signalled(*wait) for wait in sure)) if sure else None
        return self.groups[group]

    def _signalled(self, event: int, lag: int) -> Clock | None:
        return None if lag else self.fired[event]

    def joined(self, events: Iterable[int]) -> Clock:
        return self._joined(*(self.fired[event] for event in events))

    def _joined(self, *clocks: Clock | None) -> Clock:
        row = np.zeros(len(self.lengths), np.int32)
        for clock in clocks:
            if clock is not None:
                np.maximum(row, clock, out=row)
        return row

    def append(self, task: int) -> None:
        """Enter a task at the end of its chain."""
        before = self.before(task)
        if self.progress.is_dynamic:
            self.chain[task] = self._chain_behind(before)
            before = _wide(before, len(self.lengths))
        chain = self.chain[task]
        self.lengths[chain] += 1
        self.spot[task] = before[chain] = self.lengths[chain]
        self.enter(task, before)

    def enter(self, task: int, clock: Clock) -> None:
        self.rows[task] = clock
        event = self.progress.signal[task]
        if event in self.fired:
            np.maximum(self.fired[event], clock, out=self.fired[event])
        elif event >= 0:
            self.fired[event] = clock

    def _chain_behind(self, before: Clock) -> int:
        """Tickets make no chains: a task goes behind any chain that is over when it begins, or opens one."""
        over = np.flatnonzero((before == self.lengths) & (before > 0))
        if not len(over):
            over = np.flatnonzero(self.lengths == 0)
        if not len(over):
            over = np.array([len(self.lengths)])
            self._widen(2 * len(self.lengths))
        return int(over[0])

    def _widen(self, chains: int) -> None:
        self.lengths, self.rows = _wide(self.lengths, chains), _wide(self.rows, chains)
        self.fired = {event: _wide(clock, chains) for event, clock in self.fired.items()}
        self.groups = {group: None if clock is None else _wide(clock, chains) for group, clock in self.groups.items()}


class _Later(_Clocks):
    """A step's clocks of the step before."""

    def __init__(
        self, progress: Progress, polls: Polls, unsure: AbstractSet[int], earlier: _Clocks, decided: Clock
    ) -> None:
        super().__init__(progress, polls, unsure)
        self.earlier = earlier
        self.lengths = earlier.lengths
        self.rows = np.zeros_like(earlier.rows)
        self.decided = decided if progress.has_flag else None
        self.last = {} if progress.is_dynamic else {queue[0]: queue[-1] for queue in progress.queues if queue}

    def before(self, task: int) -> Clock:
        return self._joined(super().before(task), self.decided)

    def _ahead(self, task: int) -> Clock | None:
        return self.earlier.rows[self.last[task]] if task in self.last else super()._ahead(task)

    def _signalled(self, event: int, lag: int) -> Clock | None:
        return (self.earlier if lag else self).fired[event]

    def _publishing(self, tasks: Ints, whole: NDArray[np.bool_]) -> NDArray[np.int32]:
        return self.rows[tasks]


def _wide(clocks: NDArray[np.int32], chains: int) -> NDArray[np.int32]:
    """With so many chains, the new ones empty."""
    wide = np.zeros((*clocks.shape[:-1], chains), np.int32)
    wide[..., : clocks.shape[-1]] = clocks
    return wide


def _overtaken(progress: Progress, order: Order) -> dict[int, tuple[int, int]]:
    """Events that somebody may signal for a step while others owe the step before: their counters show what is not so."""
    overtaken: dict[int, tuple[int, int]] = {}
    chain, place, ago = order.chain, order.place, order.ago
    awaited = {event for waits in (*progress.waits.values(), progress.stop) for event, _ in waits}
    for event in sorted(awaited):
        tasks = np.array(progress.producers[event])
        owed = np.zeros(ago.shape[1], np.int32)
        np.maximum.at(owed, chain[tasks], place[tasks])
        early = np.argwhere(ago[tasks] < owed)
        if len(early):
            task, late = tasks[early[0, 0]], early[0, 1]
            other = next(t for t in tasks if chain[t] == late and place[t] > ago[task, late])
            overtaken[event] = int(task), int(other)
    return overtaken
