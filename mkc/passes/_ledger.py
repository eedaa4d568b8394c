"""Who last wrote each byte of a memory, and who has read it since: what both linkers ask for every access of every task.

Spans stand in rows by their form, in a row by where they start. Those that share a byte with a given span start at distances
from it that depend on the two forms alone (`mkc.ir.combs`), so a question costs what its answer does, not what is in the books.
"""

from bisect import bisect_left, bisect_right, insort
from collections import defaultdict
from collections.abc import Callable, Iterator

from mkc.ir.combs import Comb, Form, Level, distances
from mkc.ir.span import Span
from mkc.ir.tasks import Access, Task
from mkc.ir.tiling import Range
from mkc.passes._ranges import Ranges, merged

IsOver = Callable[[Range, int], bool]  # these tasks, before that one starts


class Ledger:
    """All memories."""

    def __init__(self) -> None:
        self.memories: dict[str, _Memory] = defaultdict(_Memory)

    def writers_of(self, touched: Access) -> list[Range]:
        return self.memories[touched.memory].writers_of(touched.span)

    def readers_of(self, touched: Access) -> list[Range]:
        return self.memories[touched.memory].readers_of(touched.span)

    def enter(self, task: Task, number: int, apart: bool) -> None:
        """With `apart`, no other task of its node touches what this one writes."""
        for write in task.writes:
            self.memories[write.memory].write(write.span, number, apart)
        for read in task.reads:
            self.memories[read.memory].read(read.span, number)

    def settle(self, is_over: IsOver) -> None:
        """The node is complete, and the past."""
        for memory in self.memories.values():
            memory.settle(is_over)


class _Memory:
    """What earlier nodes did stays as it is while a node is linked, so its tasks share the answers for equal spans."""

    def __init__(self) -> None:
        self.past = _Books()
        self.present = _Books()  # of the node that is being linked
        self.writers: dict[Span, Ranges] = {}  # answers from the past
        self.readers: dict[Span, Ranges] = {}

    def writers_of(self, span: Span) -> list[Range]:
        if span not in self.writers:
            self.writers[span] = merged(self.past.writers.meeting(span))
        return [*self.writers[span], *self.present.writers.meeting(span)]

    def readers_of(self, span: Span) -> list[Range]:
        if span not in self.readers:
            self.readers[span] = merged(self.past.readers.meeting(span))
        return [*self.readers[span], *self.present.readers.meeting(span)]

    def read(self, span: Span, number: int) -> None:
        self.present.readers.add(span, number)

    def write(self, span: Span, number: int, apart: bool) -> None:
        """Whoever meets earlier users of just this span meets the new writer too, and comes after them through it: unless
        they stand apart."""
        if not apart:
            self.present.writers.drop(span)
            self.present.readers.drop(span)
        self.present.writers.add(span, number)

    def settle(self, is_over: IsOver) -> None:
        if self.present.writers.rows or self.present.readers.rows:
            self.past.follow(self.present, is_over)
            self.present = _Books()
            self.writers.clear()
            self.readers.clear()


class _Books:
    """Who wrote, and who read what was written."""

    def __init__(self) -> None:
        self.writers = _Spans()
        self.readers = _Spans()

    def follow(self, node: "_Books", is_over: IsOver) -> None:
        """Enter what a node did, and forget what was done before to bytes that it has all overwritten."""
        written = node.writers
        overwritten = covered(written.runs())
        for ledger in (self.writers, self.readers):
            ledger.drop_all(written)
            for lo, hi in overwritten:
                ledger.forget(lo, hi)
        self.writers.enter(node.writers, is_over)
        self.readers.enter(node.readers, is_over)


def covered(runs: dict[tuple[Level, ...], list[Range]]) -> Ranges:
    """Bytes that spans cover together without gaps, given the first runs of those repeated alike: runs that fill a stride
    between them are one longer run."""
    for depth in range(max(map(len, runs), default=0), 0, -1):
        for levels in [levels for levels in runs if len(levels) == depth]:
            stride, count = levels[-1]
            longer = [(lo, hi + stride * (count - 1)) for lo, hi in merged(runs[levels]) if hi - lo >= stride]
            runs.setdefault(levels[:-1], []).extend(longer)
    return merged(runs.get((), ()))


class _Spans:
    """Spans with the tasks that touched them."""

    def __init__(self) -> None:
        self.rows: dict[Form, _Row] = {}

    def add(self, span: Span, number: int) -> None:
        self._row(span.form, span.stop - span.start).add(span.start, number)

    def enter(self, later: "_Spans", is_over: IsOver) -> None:
        for form, row in later.rows.items():
            self._row(form, row.extent).enter(row, is_over)

    def meeting(self, span: Span) -> list[Range]:
        """The tasks that touched a byte of it."""
        found: list[Range] = []
        for row in self.rows.values():
            if row.starts[0] < span.stop and span.start < row.starts[-1] + row.extent:
                found += row.meeting(span)
        return found

    def drop(self, span: Span) -> None:
        """Forget all who touched exactly these bytes."""
        row = self.rows.get(span.form)
        if row is not None and span.start in row.tasks:
            row.drop(span.start)
            self._tidy(row)

    def drop_all(self, others: "_Spans") -> None:
        for form in others.rows.keys() & self.rows.keys():
            row = self.rows[form]
            for start in others.rows[form].tasks.keys() & row.tasks.keys():
                row.drop(start)
            self._tidy(row)

    def forget(self, lo: int, hi: int) -> None:
        """Drop spans inside [lo, hi)."""
        for row in list(self.rows.values()):
            row.forget(lo, hi)
            self._tidy(row)

    def runs(self) -> dict[tuple[Level, ...], list[Range]]:
        """The first run of each span, by how it is repeated."""
        found: dict[tuple[Level, ...], list[Range]] = defaultdict(list)
        for (run, levels), row in self.rows.items():
            found[levels] += [(start, start + run) for start in row.starts]
        return found

    def _row(self, form: Form, extent: int) -> "_Row":
        if form not in self.rows:
            self.rows[form] = _Row(form, extent)
        return self.rows[form]

    def _tidy(self, row: "_Row") -> None:
        if not row.starts:
            del self.rows[row.form]


class _Row:
    """The spans of one form."""

    def __init__(self, form: Form, extent: int) -> None:
        self.form, self.extent = form, extent
        self.starts: list[int] = []  # in order
        self.tasks: dict[int, list[Range]] = {}  # by start
        self.known: dict[Range, Ranges] = {}  # tasks of neighbours, by their places among the starts

    def add(self, start: int, number: int) -> None:
        ranges = self._at(start)
        if ranges and ranges[-1][1] >= number:
            ranges[-1] = (ranges[-1][0], number + 1)
        else:
            ranges.append((number, number + 1))

    def enter(self, later: "_Row", is_over: IsOver) -> None:
        """Of those who touched just the same bytes before, those need no entry that the later ones come after."""
        for start, ranges in later.tasks.items():
            own = self._at(start)
            own[:] = [*(r for r in own if not is_over(r, ranges[0][0])), *ranges]

    def meeting(self, span: Span) -> list[Range]:
        found: list[Range] = []
        for comb in distances(span.form, self.form):
            for places in self._within(comb, span.start):
                found += self._tasks(places)
        return found

    def drop(self, start: int) -> None:
        del self.tasks[start]
        del self.starts[bisect_left(self.starts, start)]
        self.known.clear()

    def forget(self, lo: int, hi: int) -> None:
        inside = slice(bisect_left(self.starts, lo), bisect_right(self.starts, hi - self.extent))
        for start in self.starts[inside]:
            del self.tasks[start]
        del self.starts[inside]
        self.known.clear()

    def _at(self, start: int) -> list[Range]:
        self.known.clear()
        if start not in self.tasks:
            self.tasks[start] = []
            insort(self.starts, start)
        return self.tasks[start]

    def _within(self, comb: Comb, at: int) -> Iterator[Range]:
        """Places of the starts at the distances of a comb from `at`."""
        starts = self.starts
        place, end = bisect_left(starts, at + comb.start), bisect_left(starts, at + comb.stop)
        while place < end:
            lo, hi = comb.run_beyond(starts[place] - at)
            place = bisect_left(starts, at + lo, place, end)
            stop = bisect_left(starts, at + hi, place, end)
            if place < stop:
                yield place, stop
            place = stop

    def _tasks(self, places: Range) -> Ranges:
        if places not in self.known:
            self.known[places] = merged(r for start in self.starts[slice(*places)] for r in self.tasks[start])
        return self.known[places]
