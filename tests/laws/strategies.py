"""What hypothesis draws: layouts, boxes, accesses, tasks. Small enough to try every byte and every pair."""

from itertools import accumulate, product

from hypothesis import strategies as st

from mkc.ir.dtype import DType
from mkc.ir.graph import Graph, Kind, Node, Storage, Tensor
from mkc.ir.layout import Layout, contiguous
from mkc.ir.span import Box, span
from mkc.ir.tasks import Access, Task, Tasks
from mkc.ir.tiling import Tiling

MEMORIES = ("a", "b", "arena")
FLAG = Tensor(DType.BOOL, contiguous(()), Storage("a", 64, Kind.STATE))

shapes = st.lists(st.integers(1, 5), max_size=3).map(tuple)


@st.composite
def layouts(draw: st.DrawFn) -> Layout:
    """Any strides: nested, overlapping, zero; or a contiguous tensor, as most are."""
    shape = draw(shapes)
    strides = draw(st.one_of(st.just(contiguous(shape).strides), st.tuples(*(st.integers(0, 12) for _ in shape))))
    return Layout(shape, strides, draw(st.integers(0, 8)))


@st.composite
def boxes(draw: st.DrawFn, layout: Layout) -> Box:
    """Non-empty."""
    los = [draw(st.integers(0, n - 1)) for n in layout.shape]
    return tuple((lo, draw(st.integers(lo + 1, n))) for lo, n in zip(los, layout.shape, strict=True))


def touched(layout: Layout, box: Box, itemsize: int) -> frozenset[int]:
    """The bytes of a box, one element after another."""
    places = product(*(range(lo, hi) for lo, hi in box))
    starts = [layout.offset + sum(i * s for i, s in zip(at, layout.strides, strict=True)) for at in places]
    return frozenset(start * itemsize + byte for start in starts for byte in range(itemsize))


@st.composite
def accesses(draw: st.DrawFn, frame: Layout) -> Access:
    """A box of a tensor that others look at too, or of one that lies anyhow."""
    layout = draw(st.one_of(st.just(frame), layouts()))
    return Access(draw(st.sampled_from(MEMORIES)), span(layout, draw(boxes(layout)), draw(st.sampled_from((1, 2)))))


@st.composite
def task_lists(draw: st.DrawFn, loops: bool) -> Tasks:
    """Tasks of up to 6 nodes with random accesses to shared memories; some nodes say that their tasks never meet. When
    they loop, a flag may end them."""
    frame = draw(layouts())
    sizes = draw(st.lists(st.integers(1, 4), min_size=1, max_size=6))
    touch = st.lists(accesses(frame), max_size=2).map(tuple)
    tasks = tuple(Task(node, (), draw(touch), draw(touch)) for node, size in enumerate(sizes) for _ in range(size))
    nodes = tuple(Node(f"n{i}", "fake", (), ()) for i in range(len(sizes)))
    graph = Graph(nodes, (), (), loops, FLAG if loops and draw(st.booleans()) else None)
    tilings = tuple(Tiling((), (), (), apart=draw(st.booleans())) for _ in sizes)
    return Tasks(graph, tilings, tasks, tuple(accumulate(sizes, initial=0)))
