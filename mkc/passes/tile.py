"""Graph, Target -> Tasks. Every operator becomes one task for each point of its grid."""

from itertools import accumulate

from mkc.errors import OptionError
from mkc.ir.graph import Graph
from mkc.ir.target import Target
from mkc.ir.tasks import Access, Task, Tasks, access
from mkc.ir.tiling import Range, TileMap
from mkc.ops import registry

MOST = 2**22  # tasks: four million, a few hundred megabytes on the way here


def tile(graph: Graph, target: Target) -> Tasks:
    tilings = tuple(registry()[node.op].tile(node, target) for node in graph.nodes)
    if (count := sum(t.size for t in tilings)) > MOST:
        raise OptionError(f"{graph.name} becomes {count} tasks, and a plan holds {MOST}; compile it for fewer workers")
    tasks = tuple(
        Task(i, ranges, reads(ranges), writes(ranges))
        for i, tiling in enumerate(tilings)
        for reads, writes in [(_Accesses(tiling.imaps), _Accesses(tiling.omaps))]
        for ranges in tiling.ranges()
    )
    return Tasks(graph, tilings, tasks, tuple(accumulate((t.size for t in tilings), initial=0)))


class _Accesses:
    """The accesses of a node's maps at a grid point; neighbours that touch the same box share one."""

    def __init__(self, maps: tuple[TileMap, ...]) -> None:
        self.maps = tuple(m for m in maps if m.tensor.storage.kind.is_written)
        self.known: dict[tuple[int, object], Access] = {}

    def __call__(self, ranges: tuple[Range, ...]) -> tuple[Access, ...]:
        return tuple(self.at(i, m, ranges) for i, m in enumerate(self.maps))

    def at(self, index: int, tile_map: TileMap, ranges: tuple[Range, ...]) -> Access:
        box = tile_map.at(ranges)
        key = (index, box)
        if key not in self.known:
            self.known[key] = access(tile_map.tensor, box)
        return self.known[key]
