"""Tasks -> TaskGraph. A task comes after every earlier task whose tile it would disturb, or be disturbed by."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from mkc.ir.graph import Graph, Kind
from mkc.ir.span import Span
from mkc.ir.tasks import Task, TaskGraph, Tasks, access
from mkc.ir.tiling import Range
from mkc.passes._link_published import link_published
from mkc.passes._reach import clipped, merged

Ranges = tuple[Range, ...]


def link(tasks: Tasks, workers: int = 0) -> TaskGraph:
    """A graph that loops is linked over two steps: what the second finds of the first is carried from step to step.

    Among `workers` the tasks of pinned nodes have their places already, where words are published.
    """
    if any(storage.kind is Kind.WORDS for storage in tasks.graph.storages):
        return link_published(tasks, workers)
    count = len(tasks.tasks)
    memories: dict[str, _Memory] = defaultdict(_Memory)
    reach = _Reach(tasks)
    after: list[Ranges] = []
    apart = {node for node, tiling in enumerate(tasks.tilings) if tiling.apart}
    for step in range(1 + tasks.graph.loops):
        for node, (first, end) in enumerate(pairwise(tasks.first)):
            for local in range(first, end):
                found = _conflicts(memories, tasks.tasks[local], step * count + local, node in apart)
                after.append(reach.reduced(clipped(found, 0, step * count + first) if node in apart else found))
            for memory in memories.values():
                memory.settle(reach)
    last = count if tasks.graph.loops else 0
    settled = clipped(_settled(memories, tasks.graph), last, last + count)
    stop = tuple((lo - last, hi - last) for lo, hi in settled)
    carried = tuple(clipped(ranges, 0, count) for ranges in after[count:]) or ((),) * count
    return TaskGraph(tasks, tuple(after[:count]), carried, stop)


def _conflicts(memories: "dict[str, _Memory]", task: Task, number: int, apart: bool) -> Ranges:
    """Earlier tasks in conflict with this one, which is then entered into the books; `apart`, beside those of its node."""
    found = [r for read in task.reads for r in memories[read.memory].writers_of(read.span)]
    found += [r for write in task.writes for r in memories[write.memory].users_of(write.span)]
    for write in task.writes:
        books = memories[write.memory].present
        (books.writers.add if apart else books.write)(write.span, number)
    for read in task.reads:
        memories[read.memory].present.readers.add(read.span, number)
    return _without(merged(found), number)


def _settled(memories: "dict[str, _Memory]", graph: Graph) -> Ranges:
    if graph.until is None:
        return ()
    flag = access(graph.until, tuple((0, n) for n in graph.until.shape))
    return merged(memories[flag.memory].writers_of(flag.span))


class _Memory:
    """Who last wrote each byte of a memory, and who has read it since.

    What earlier nodes did stays as it is while a node is linked, so its tasks share the answers for equal spans.
    """

    def __init__(self) -> None:
        self.past = _Books()
        self.present = _Books()  # of the node that is being linked
        self.writers: dict[Span, Ranges] = {}  # answers from the past
        self.users: dict[Span, Ranges] = {}

    def writers_of(self, span: Span) -> list[Range]:
        if span not in self.writers:
            self.writers[span] = merged(self.past.writers.meeting(span))
        return [*self.writers[span], *self.present.writers.meeting(span)]

    def users_of(self, span: Span) -> list[Range]:
        if span not in self.users:
            self.users[span] = merged(self.past.meeting(span))
        return [*self.users[span], *self.present.meeting(span)]

    def settle(self, reach: "_Reach") -> None:
        """The node is complete, and the past."""
        if not (self.present.writers.tasks or self.present.readers.tasks):
            return
        self.past.follow(self.present, reach)
        self.present = _Books()
        self.writers.clear()
        self.users.clear()


class _Books:
    """Who wrote, and who read what was written."""

    def __init__(self) -> None:
        self.writers = _Ledger()
        self.readers = _Ledger()

    def meeting(self, span: Span) -> list[Range]:
        return self.writers.meeting(span) + self.readers.meeting(span)

    def write(self, span: Span, number: int) -> None:
        """Whoever meets earlier users of just this span meets the new writer too, and comes after them through it."""
        self.writers.drop(span)
        self.readers.drop(span)
        self.writers.add(span, number)

    def follow(self, node: "_Books", reach: "_Reach") -> None:
        """Enter what a node did, and forget what was done before to bytes that it has all overwritten."""
        written = node.writers.tasks
        overwritten = _covered(written)
        for ledger in (self.writers, self.readers):
            for span in written:
                ledger.drop(span)
            for lo, hi in overwritten:
                ledger.forget(lo, hi)
        self.writers.enter(node.writers, reach)
        self.readers.enter(node.readers, reach)


def _covered(spans: Iterable[Span]) -> Ranges:
    """Bytes that spans cover together without gaps: runs that fill a stride between them are one longer run."""
    runs: dict[tuple[tuple[int, int], ...], list[Range]] = defaultdict(list)  # by levels
    for span in spans:
        runs[span.levels].append((span.start, span.start + span.run))
    for depth in range(max(map(len, runs), default=0), 0, -1):
        for levels in [levels for levels in runs if len(levels) == depth]:
            stride, count = levels[-1]
            runs[levels[:-1]] += [(lo, hi + stride * (count - 1)) for lo, hi in merged(runs[levels]) if hi - lo >= stride]
    return merged(runs[()])


class _Ledger:
    """Spans with the tasks that touched them, found by the pages they lie in. Large spans lie in large pages, one or two."""

    PAGE = 1024  # bytes, of the smallest pages; about a tile

    def __init__(self) -> None:
        self.tasks: dict[Span, list[Range]] = {}
        self.pages: dict[int, dict[int, dict[Span, None]]] = {}  # by size, then by number

    def add(self, span: Span, number: int) -> None:
        ranges = self._of(span)
        if ranges and ranges[-1][1] >= number:
            ranges[-1] = (ranges[-1][0], number + 1)
        else:
            ranges.append((number, number + 1))

    def enter(self, later: "_Ledger", reach: "_Reach") -> None:
        """Of those who touched just the same bytes before, those need no entry that the later ones come after."""
        for span, ranges in later.tasks.items():
            own = self._of(span)
            own[:] = [*(r for r in own if not reach.is_over(r, ranges[0][0])), *ranges]

    def meeting(self, span: Span) -> list[Range]:
        near = self._near(span.start, span.stop)
        return [r for other in near if span.meets(other) for r in self.tasks[other]]

    def forget(self, lo: int, hi: int) -> None:
        """Drop spans inside [lo, hi)."""
        for span in self._near(lo, hi):
            if lo <= span.start and span.stop <= hi:
                self.drop(span)

    def drop(self, span: Span) -> None:
        """Forget all who touched exactly these bytes."""
        if self.tasks.pop(span, None) is not None:
            for page in self._pages_of(span):
                del page[span]

    def _of(self, span: Span) -> list[Range]:
        ranges = self.tasks.get(span)
        if ranges is None:
            ranges = self.tasks[span] = []
            for page in self._pages_of(span):
                page[span] = None
        return ranges

    def _pages_of(self, span: Span) -> list[dict[Span, None]]:
        size = max(self.PAGE, 1 << (span.stop - span.start - 1).bit_length())
        pages = self.pages.setdefault(size, {})
        return [pages.setdefault(n, {}) for n in range(span.start // size, -(-span.stop // size))]

    def _near(self, lo: int, hi: int) -> list[Span]:
        """Spans whose hull meets [lo, hi), each once."""
        found: list[Span] = []
        for size, pages in self.pages.items():
            numbers = range(lo // size, -(-hi // size))
            known = numbers if len(numbers) < len(pages) else [n for n in pages if n in numbers]
            for page in filter(None, map(pages.get, known)):
                found += [span for span in page if span.start < hi and lo < span.stop]
        return list(dict.fromkeys(found))


@dataclass(frozen=True, slots=True)
class _Done:
    """What is known to be over: whole nodes, a bit for each, and of other nodes some tasks, a bit for each from the first."""

    nodes: int = 0
    tasks: tuple[tuple[int, int], ...] = ()  # (node, bits)


class _Reach:
    """What is known to be over before a task starts; drops edges that other edges imply. A second step has nodes of its own."""

    def __init__(self, tasks: Tasks) -> None:
        self.tasks = tasks
        self.before: list[_Done] = []  # per task
        self.by_range: dict[Range, _Done] = {}
        self.by_ranges: dict[Ranges, tuple[Ranges, _Done]] = {}

    def reduced(self, ranges: Ranges) -> Ranges:
        if ranges not in self.by_ranges:
            self.by_ranges[ranges] = self._reduce(ranges)
        kept, done = self.by_ranges[ranges]
        self.before.append(done)
        return kept

    def is_over(self, earlier: Range, task: int) -> bool:
        """True when `task` is known to start after all of these."""
        return all(self._covers(self.before[task], node, part) for node, part in self._by_node(earlier))

    def _reduce(self, ranges: Ranges) -> tuple[Ranges, _Done]:
        parts = [part for r in ranges for part in self._by_node(r)]
        kept, done = [], _Done()
        for node, part in reversed(parts):  # later nodes imply earlier ones, never the other way round
            if not self._covers(done, node, part):
                kept.append(part)
                done = self._joined([done, self._behind(node, part)])
        return merged(kept), done

    def _behind(self, node: int, part: Range) -> _Done:
        """What is over when these tasks of a node are."""
        if part not in self.by_range:
            before = {id(done): done for done in self.before[slice(*part)]}
            own = _Done(0, ((node, self._bits(node, part)),))
            self.by_range[part] = self._joined([own, *before.values()])
        return self.by_range[part]

    def _joined(self, parts: Sequence[_Done]) -> _Done:
        nodes, tasks = 0, dict[int, int]()
        for part in parts:
            nodes |= part.nodes
            for node, bits in part.tasks:
                tasks[node] = tasks.get(node, 0) | bits
        for node, bits in tasks.items():
            if bits == self._bits(node, self._all_of(node)):
                nodes |= 1 << node
        some = sorted((node, bits) for node, bits in tasks.items() if not nodes >> node & 1)
        return _Done(nodes, tuple(some[-self.REMEMBERED :]))

    REMEMBERED = 16  # nodes of which some tasks are over; to forget one costs a wait that others imply, nothing more

    def _covers(self, done: _Done, node: int, part: Range) -> bool:
        bits = self._bits(node, part)
        return bool(done.nodes >> node & 1) or any(n == node and bits & ~b == 0 for n, b in done.tasks)

    def _bits(self, node: int, part: Range) -> int:
        return (1 << part[1] - part[0]) - 1 << part[0] - self._all_of(node)[0]

    def _by_node(self, r: Range) -> Iterable[tuple[int, Range]]:
        lo, hi = r
        while lo < hi:
            step, local = divmod(lo, len(self.tasks.tasks))
            node = self.tasks.node_index(local) + step * len(self.tasks.graph.nodes)
            stop = min(hi, self._all_of(node)[1])
            yield node, (lo, stop)
            lo = stop

    def _all_of(self, node: int) -> Range:
        step, local = divmod(node, len(self.tasks.graph.nodes))
        shift = step * len(self.tasks.tasks)
        return self.tasks.first[local] + shift, self.tasks.first[local + 1] + shift


def _without(ranges: Ranges, number: int) -> Ranges:
    """Every range, less the task itself, which may both read and write its tile."""
    return tuple(r for lo, hi in ranges for r in ((lo, min(hi, number)),) if r[0] < r[1])
