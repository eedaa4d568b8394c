"""Tasks -> what is over before each starts. Drops edges that other edges imply."""

from collections.abc import Sequence
from dataclasses import dataclass

from mkc.ir.graph import Tensor
from mkc.ir.tasks import Task, Tasks, access
from mkc.ir.tiling import Range
from mkc.passes._ledger import Ledger
from mkc.passes._ranges import Numbering, Ranges, clipped, merged


@dataclass(frozen=True, slots=True)
class Done:
    """What is known to be over: whole nodes, a bit for each, and of other nodes some tasks, a bit for each from the first."""

    nodes: int = 0
    tasks: tuple[tuple[int, int], ...] = ()  # (node, bits)


class Reach:
    """What is known to be over before a task starts; drops edges that other edges imply. A second step has nodes of its own."""

    def __init__(self, tasks: Tasks) -> None:
        self.nodes = Numbering(tasks)
        self.before: list[Done] = []  # per task
        self.parts: dict[Range, list[tuple[int, Range]]] = {}  # by node
        self.by_range: dict[Range, Done] = {}
        self.by_ranges: dict[Ranges, tuple[Ranges, Done]] = {}

    def edges(self, ledger: Ledger, task: Task, end: int) -> Ranges:
        """The tasks before `end` that the next task, which is this one, has to wait for."""
        found = [r for read in task.reads for r in ledger.writers_of(read)]
        found += [r for write in task.writes for r in (*ledger.writers_of(write), *ledger.readers_of(write))]
        return self._reduced(clipped(merged(found), 0, end))

    def stop(self, ledger: Ledger, flag: Tensor) -> Ranges:
        """The tasks after which a flag is settled."""
        return merged(ledger.writers_of(access(flag, tuple((0, n) for n in flag.shape))))

    def is_over(self, earlier: Range, task: int) -> bool:
        """True when `task` is known to start after all of these."""
        return all(self._covers(self.before[task], node, part) for node, part in self._parts(earlier))

    def _reduced(self, ranges: Ranges) -> Ranges:
        if ranges not in self.by_ranges:
            self.by_ranges[ranges] = self._reduce(ranges)
        kept, done = self.by_ranges[ranges]
        self.before.append(done)
        return kept

    def _reduce(self, ranges: Ranges) -> tuple[Ranges, Done]:
        parts = [part for r in ranges for part in self._parts(r)]
        kept, done = [], Done()
        for node, part in reversed(parts):  # later nodes imply earlier ones, never the other way round
            if not self._covers(done, node, part):
                kept.append(part)
                done = self._joined([done, self._behind(node, part)])
        return merged(kept), done

    def _parts(self, r: Range) -> list[tuple[int, Range]]:
        if r not in self.parts:
            self.parts[r] = list(self.nodes.by_node(r))
        return self.parts[r]

    def _behind(self, node: int, part: Range) -> Done:
        """What is over when these tasks of a node are."""
        if part not in self.by_range:
            before = {id(done): done for done in self.before[slice(*part)]}
            own = Done(0, ((node, self._bits(node, part)),))
            self.by_range[part] = self._joined([own, *before.values()])
        return self.by_range[part]

    def _joined(self, parts: Sequence[Done]) -> Done:
        nodes, tasks = 0, dict[int, int]()
        for part in parts:
            nodes |= part.nodes
            for node, bits in part.tasks:
                tasks[node] = tasks.get(node, 0) | bits
        for node, bits in tasks.items():
            if bits == self._bits(node, self.nodes.extent(node)):
                nodes |= 1 << node
        some = sorted((node, bits) for node, bits in tasks.items() if not nodes >> node & 1)
        return Done(nodes, tuple(some[-self.REMEMBERED :]))

    REMEMBERED = 16  # nodes of which some tasks are over; to forget one costs a wait that others imply, nothing more

    def _covers(self, done: Done, node: int, part: Range) -> bool:
        if done.nodes >> node & 1:
            return True
        bits = self._bits(node, part)
        return any(n == node and bits & ~b == 0 for n, b in done.tasks)

    def _bits(self, node: int, part: Range) -> int:
        return (1 << part[1] - part[0]) - 1 << part[0] - self.nodes.extent(node)[0]
