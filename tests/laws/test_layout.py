"""Layout: the same elements as numpy's views, and a reshape wherever numpy can reshape without a copy."""

from math import prod

import numpy as np
from hypothesis import assume, given
from hypothesis import strategies as st
from laws.strategies import layouts, shapes
from numpy.lib.stride_tricks import as_strided
from numpy.typing import NDArray

from mkc.ir.layout import Layout, coalesce, contiguous

MEMORY = np.arange(4096)


def seen(layout: Layout) -> NDArray[np.int64]:
    return as_strided(MEMORY[layout.offset :], layout.shape, [s * MEMORY.itemsize for s in layout.strides])


def same(layout: Layout, expected: NDArray[np.int64]) -> bool:
    return layout.shape == expected.shape and np.array_equal(seen(layout), expected)


@given(st.data())
def test_permute_slice_select_and_expand_are_those_of_numpy(data: st.DataObject) -> None:
    layout = data.draw(layouts())
    order = data.draw(st.permutations(range(layout.rank)))
    assert same(layout.permute(order), seen(layout).transpose(order))
    assert same(layout.unsqueeze(layout.rank), seen(layout)[..., None])
    wide = (3, *layout.shape)
    assert same(layout.expand(wide), np.broadcast_to(seen(layout), wide))
    assume(layout.rank)
    dim = data.draw(st.integers(0, layout.rank - 1))
    start, step = data.draw(st.integers(0, layout.shape[dim] - 1)), data.draw(st.integers(1, 3))
    stop = data.draw(st.integers(start, layout.shape[dim]))
    before: tuple[slice, ...] = (slice(None),) * dim
    assert same(layout.slice(dim, start, stop, step), seen(layout)[(*before, slice(start, stop, step))])
    assert same(layout.select(dim, start), seen(layout.slice(dim, start, start + 1)).squeeze(dim))


@given(layouts(), st.data())
def test_reshape_shows_the_same_elements_or_refuses_what_numpy_would_copy(layout: Layout, data: st.DataObject) -> None:
    shape = data.draw(shapes.filter(lambda s: prod(s) == layout.numel) if layout.numel < 5 else factors(layout.numel))
    made = layout.reshape(shape)
    view = seen(layout)
    assert made is None or same(made, view.reshape(shape))
    if made is None:
        assert not np.shares_memory(view.reshape(shape), MEMORY)


@st.composite
def factors(draw: st.DrawFn, numel: int) -> tuple[int, ...]:
    """A shape of so many elements."""
    shape: list[int] = []
    while numel > 1:
        shape.append(draw(st.sampled_from([n for n in range(1, numel + 1) if numel % n == 0 and (n > 1 or len(shape) < 4)])))
        numel //= shape[-1]
    return tuple(shape)


@given(st.lists(layouts(), min_size=1, max_size=3))
def test_coalesce_keeps_every_layout_in_step_with_the_others(drawn: list[Layout]) -> None:
    shape = drawn[0].shape
    alike = [Layout(shape, x.strides if x.shape == shape else contiguous(shape).strides, x.offset) for x in drawn]
    merged = coalesce(alike)
    assert len({x.shape for x in merged}) == 1
    for before, after in zip(alike, merged, strict=True):
        assert np.array_equal(seen(before).ravel(), seen(after).ravel())


@given(shapes)
def test_a_contiguous_tensor_coalesces_to_one_dimension(shape: tuple[int, ...]) -> None:
    (merged,) = coalesce([contiguous(shape)])
    assert merged.shape == (prod(shape),)


@given(layouts())
def test_an_injective_layout_has_no_element_twice(layout: Layout) -> None:
    elements = seen(layout).ravel().tolist()
    assert not layout.is_injective or len(set(elements)) == len(elements)
    assert not layout.is_contiguous or elements == list(range(layout.offset, layout.offset + layout.numel))
