"""Tasks -> TaskGraph where some results are published. Words order less than events do, so what may be left out differs.

The books are simpler than those of `link`: nothing is forgotten on the strength of an order that words might keep.
"""

from collections.abc import Iterable
from collections.abc import Set as AbstractSet
from itertools import chain, pairwise

from mkc.ir.graph import Graph, Kind
from mkc.ir.span import Span
from mkc.ir.tasks import WORDS, Access, Task, TaskGraph, Tasks, access
from mkc.ir.tiling import Range
from mkc.ops import registry
from mkc.passes._reach import Found, Known, Reach, clipped, merged

Ranges = tuple[Range, ...]


def link_published(tasks: Tasks, workers: int) -> TaskGraph:
    """As `link`. Among `workers` the tasks of pinned nodes have their places already.

    The decision about another step then comes after all of this one, so that no word is overwritten before it was read.
    """
    count = len(tasks.tasks)
    memories: dict[str, _Memory] = {}
    reach = Reach(tasks, workers)
    after: list[Ranges] = []
    stop: Ranges = ()
    for step in range(1 + tasks.graph.loops):
        for node, (first, end) in enumerate(pairwise(tasks.first)):
            for local in range(first, end):
                found = _found(memories, tasks, tasks.tasks[local], step * count + local)
                after.append(reach.reduced(_apart(found, step * count + first) if tasks.tilings[node].apart else found))
            for memory in memories.values():
                memory.settle(step * count + first)
        if step == 0 and tasks.graph.until is not None:
            stop = merged((*_settled(memories, tasks.graph), *reach.leaves()))
            everything = Known(0, (1 << len(tasks.graph.nodes)) - 1)  # stands before some leaf, so has been read
            reach.begin = reach.after(stop) | everything
    carried = tuple(clipped(ranges, 0, count) for ranges in after[count:]) or ((),) * count
    return TaskGraph(tasks, tuple(after[:count]), carried, stop)


def _found(memories: "dict[str, _Memory]", tasks: Tasks, task: Task, number: int) -> Found:
    """As `_conflicts`; a task never waits for itself, since it stays in its queue from step to step."""
    made, read, polled = list[Range](), list[Range](), list[Range]()
    for touched in task.reads:
        (polled if touched.memory == WORDS else made).extend(_at(memories, touched).writers_of(touched.span))
    sure = [(whole, _at(memories, touched).writers_of(touched.span)) for touched, whole in _sure(tasks, task)]
    for touched in task.writes:
        if touched.memory != WORDS:
            made += _at(memories, touched).writers.meeting(touched.span)
        read += _at(memories, touched).readers.meeting(touched.span)
    for touched in task.writes:
        _at(memories, touched).write(touched.span, number)
    for touched in task.reads:
        _at(memories, touched).readers.add(touched.span, number)
    itself = {number, number - len(tasks.tasks)}
    certain = [r for _, ranges in sure for r in ranges]
    complete = [r for whole, ranges in sure if whole for r in ranges]
    return Found(*(_but(itself, ranges) for ranges in (made, read, polled, certain, complete)))


def _sure(tasks: Tasks, task: Task) -> Iterable[tuple[Access, bool]]:
    """The words that a task waits for whatever the data are, and whether they are all of their tensor."""
    node, tiling = tasks.graph.nodes[task.node], tasks.tilings[task.node]
    streaming = registry()[node.op].streaming
    for tile_map in streaming.surely(node, tiling, task.ranges) if streaming else ():
        storage = tile_map.tensor.storage
        if storage.kind is Kind.WORDS:
            words = access(tile_map.tensor, tile_map.at(task.ranges))
            yield words, words.span.is_dense and words.span.stop - words.span.start == storage.nbytes


def _apart(found: Found, first: int) -> Found:
    """Without tasks of the same node."""
    return Found(*(clipped(r, 0, first) for r in (found.made, found.read, found.polled, found.sure, found.whole)))


def _but(itself: AbstractSet[int], ranges: Iterable[Range]) -> Ranges:
    """The ranges without two tasks."""
    rest = merged(ranges)
    for at in itself:
        rest = tuple(r for lo, hi in rest for r in ((lo, min(hi, at)), (max(lo, at + 1), hi)) if r[0] < r[1])
    return rest


def _at(memories: "dict[str, _Memory]", touched: Access) -> "_Memory":
    return memories.get(touched.memory) or memories.setdefault(touched.memory, _Memory())


def _settled(memories: "dict[str, _Memory]", graph: Graph) -> Ranges:
    if graph.until is None:
        return ()
    flag = access(graph.until, tuple((0, n) for n in graph.until.shape))
    return merged(_at(memories, flag).writers.meeting(flag.span))


class _Memory:
    """Who last wrote each byte of a memory, and who has read it since."""

    def __init__(self) -> None:
        self.writers = _Ledger()
        self.readers = _Ledger()
        self.known: dict[Span, Ranges] = {}  # answers of `writers_of` to this node that still hold
        self.fresh: list[Range] = []  # bytes that the present node wrote without gaps

    def writers_of(self, span: Span) -> Ranges:
        if span not in self.known:
            self.known[span] = merged(self.writers.meeting(span))
        return self.known[span]

    def write(self, span: Span, number: int) -> None:
        self.known = {read: ranges for read, ranges in self.known.items() if not read.meets(span)}
        self.writers.add(span, number)
        if span.is_dense:
            self.fresh.append((span.start, span.stop))

    def settle(self, first: int) -> None:
        """A node is complete: forget what tasks before `first` did to bytes that the node has all overwritten.

        Whoever meets that later meets the node's writes too, and comes after both through them.
        """
        for lo, hi in merged(self.fresh):
            self.writers.forget(lo, hi, first)
            self.readers.forget(lo, hi, first)
        self.fresh.clear()
        self.known.clear()


class _Ledger:
    """Spans with the tasks that touched them, found by the pages they lie in."""

    PAGE = 1024  # bytes; about a tile

    def __init__(self) -> None:
        self.tasks: dict[Span, list[Range]] = {}
        self.pages: dict[int, dict[Span, None]] = {}

    def add(self, span: Span, number: int) -> None:
        ranges = self.tasks.get(span)
        if ranges is None:
            self.tasks[span] = [(number, number + 1)]
            for page in self._pages(span.start, span.stop):
                self.pages.setdefault(page, {})[span] = None
        elif ranges[-1][1] == number:
            ranges[-1] = (ranges[-1][0], number + 1)
        elif ranges[-1][1] < number:
            ranges.append((number, number + 1))

    def meeting(self, span: Span) -> list[Range]:
        return [r for other in self._near(span.start, span.stop) if span.meets(other) for r in self.tasks[other]]

    def forget(self, lo: int, hi: int, before: int) -> None:
        """Drop what tasks before `before` did to spans inside [lo, hi)."""
        for span in self._near(lo, hi):
            if not (lo <= span.start and span.stop <= hi):
                continue
            self.tasks[span] = [r for r in self.tasks[span] if r[1] > before]
            if not self.tasks[span]:
                del self.tasks[span]
                for page in self._pages(span.start, span.stop):
                    del self.pages[page][span]

    def _near(self, lo: int, hi: int) -> list[Span]:
        """All spans that share a byte with [lo, hi), and some that only share a page, each once."""
        if len(self._pages(lo, hi)) > len(self.tasks):
            return [span for span in self.tasks if span.start < hi and lo < span.stop]
        pages = [self.pages[page] for page in self._pages(lo, hi) if page in self.pages]
        return list(pages[0]) if len(pages) == 1 else list(dict.fromkeys(chain.from_iterable(pages)))

    def _pages(self, lo: int, hi: int) -> range:
        return range(lo // self.PAGE, -(-hi // self.PAGE))
