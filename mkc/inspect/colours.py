"""Operators -> colours: the same operator looks the same in the graph and on the timeline of a kernel."""

from collections.abc import Iterable, Mapping

PALETTE = (
    "#4269d0", "#efb118", "#3ca951", "#ff725c", "#a463f2", "#6cc5b0",
    "#9c6b4e", "#ff8ab7", "#97bbf5", "#7a8b3c", "#d0559b", "#2f8f9d",
)  # fmt: skip


def colours(ops: Iterable[str]) -> Mapping[str, str]:
    """A colour for each operator, given in the order of their names; those beyond the palette begin it again."""
    return {op: PALETTE[i % len(PALETTE)] for i, op in enumerate(sorted(set(ops)))}
