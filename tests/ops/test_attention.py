"""scaled_dot_product_attention: head counts, masks, odd sizes, and keys that no row sees."""

import pytest
import torch
import torch.nn.functional as F
from numerics import FLOATS, assert_as_torch, assert_close_to_float64, assert_reference_agrees
from oracle import interpreted, machine
from torch import nn

import mkc
from mkc.frontend.convert import convert
from mkc.frontend.trace import trace


def heads(batch, count, rows, depth, dtype=torch.float32):
    return torch.randn(batch, count, rows, depth).to(dtype)


def grouped(q, k, v, mask=None, **options):
    return F.scaled_dot_product_attention(q, k, v, mask, enable_gqa=True, **options)


def ops(fast):
    return [node.op for node in fast.compilation.sections[0].fused.nodes]


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize(
    ("group", "depth", "rows", "keys"), [(1, 32, 17, 33), (2, 80, 1, 300), (4, 128, 1, 100), (4, 64, 5, 17)]
)
def test_heads_share_keys(dtype, group, depth, rows, keys):
    k, v = heads(2, 2, keys, depth, dtype), heads(2, 2, keys, depth, dtype)
    assert_as_torch(grouped, heads(2, 2 * group, rows, depth, dtype), k, v)


@pytest.mark.parametrize("dtype", FLOATS)
def test_causal_rows_see_the_keys_up_to_their_own_number(dtype):
    def attend(q, k, v, longer):
        return [grouped(q, k, v, is_causal=True), grouped(q, longer, longer, is_causal=True)]

    q = heads(1, 4, 17, 32, dtype)
    assert_as_torch(
        attend, q, heads(1, 2, 17, 32, dtype), heads(1, 2, 17, 32, dtype), heads(1, 2, 40, 32, dtype)
    )


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("rows", [1, 17])
def test_masks_hide_keys_or_are_added_to_scores(dtype, rows):
    def attend(q, k, v, hides, adds):
        return [grouped(q, k, v, hides), grouped(q, k, v, adds)]

    q, k, v = heads(2, 4, rows, 32, dtype), heads(2, 2, 259, 32, dtype), heads(2, 2, 259, 32, dtype)
    hides = torch.rand(2, 1, rows, 259) < 0.1
    assert_as_torch(attend, q, k, v, hides, torch.randn(rows, 259).to(dtype))


def test_a_row_that_sees_no_key_is_zero():
    q, k = heads(1, 2, 6, 32), heads(1, 2, 64, 32)
    hides, adds = torch.ones(6, 64, dtype=torch.bool), torch.zeros(6, 64)
    hides[1], adds[5] = False, -torch.inf
    fast = assert_as_torch(lambda *x: [grouped(*x[:3], m) for m in x[3:]], q, k, k, hides, adds)
    assert fast(q, k, k, hides, adds)[0][:, :, 1].abs().max() == 0


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("adds", [False, True])
@pytest.mark.parametrize(("rows", "count", "depth"), [(1, 256, 32), (5, 256, 24), (1, 700, 64), (3, 700, 64)])
def test_keys_that_no_row_sees_are_not_read(dtype, adds, rows, count, depth):
    """Not even those of a block that is partly seen: zero times what is not a number is not a number."""
    q, k = heads(1, 4, rows, depth, dtype), heads(1, 2, count, depth, dtype)
    fast = assert_as_torch(grouped, q, k, k, _mask(torch.ones(1, 1, 1, count, dtype=torch.bool), adds, dtype))
    number = torch.arange(count)[None, None, None]
    for first, last in [(0, 1), (63, 64), (17, 240), (count - 1, count), (5, 6)]:
        sees = (number >= first) & (number < last)
        unseen = k.masked_fill(~sees.mT, torch.nan)
        assert_close_to_float64(fast(q, unseen, unseen, _mask(sees, adds, dtype)), grouped, q, k, k, _mask(sees, adds, dtype))
    nothing = fast(q, torch.full_like(k, torch.nan), torch.full_like(k, torch.nan), _mask(number < 0, adds, dtype))
    assert torch.equal(nothing, torch.zeros_like(nothing))


@pytest.mark.parametrize("adds", [False, True])
@pytest.mark.parametrize("count", [48, 700])
def test_nor_does_the_reference_read_them(adds, count):
    q, k, sees = heads(1, 4, 3, 32), heads(1, 2, count, 32), torch.arange(count)[None, None, None] < 40
    mask, unseen = _mask(sees, adds, torch.float32), k.masked_fill(~sees.mT, torch.nan)
    meaning = interpreted([convert(trace(grouped, (q, k, k, mask), {}))], machine(5))
    assert_close_to_float64(meaning([q, unseen, unseen, mask])[0], grouped, q, k, k, mask)


def _mask(sees, adds, dtype):
    return torch.zeros(sees.shape).masked_fill(~sees, -torch.inf).to(dtype) if adds else sees


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("room", [40, 700])
@pytest.mark.parametrize("rows", [1, 6])
def test_a_cache_is_read_up_to_the_last_key_and_not_beyond(dtype, room, rows):
    """Behind it lies NaN, as it may in memory that was never written."""

    def step(q, keys, values, position, new):
        at = torch.arange(rows) + position
        keys.index_copy_(2, at, new)
        values.index_copy_(2, at, new)
        return grouped(q, keys, values, torch.arange(room)[None, None, None] <= at[None, None, :, None])

    q, new = heads(1, 4, rows, 32, dtype), heads(1, 2, rows, 32, dtype)
    caches = [torch.full((1, 2, room, 32), torch.nan, dtype=dtype) for _ in range(2)]
    fast = mkc.compile(step, (q, *caches, torch.tensor([0]), new), target=machine(5), fallback="error")
    known = torch.zeros(1, 2, room, 32, dtype=dtype)
    for position in (0, 1, 15, 16, 17, room - rows):
        known[:, :, :position] = heads(1, 2, position, 32, dtype)
        keys = [known.clone(), known.clone()]
        for cache in keys:
            cache[:, :, position:] = torch.nan
        got = fast(q, *keys, torch.tensor([position]), new)
        assert torch.isfinite(got).all()
        assert_close_to_float64(got, lambda q, new: step(q, known.to(q), known.to(q), position, new), q, new)  # noqa: B023


@pytest.mark.parametrize("dtype", FLOATS)
def test_many_keys_are_shared_out_and_their_parts_put_together(dtype):
    def attend(q, k, v, mask):
        return [grouped(q, k, v), grouped(q, k, v, mask)]

    mask = torch.rand(1, 1, 3, 700) < 0.2
    mask[:, :, 0, 30:] = mask[:, :, 1] = False
    q, k, v = heads(1, 4, 3, 80, dtype), heads(1, 2, 700, 80, dtype), heads(1, 2, 700, 80, dtype)
    assert ops(assert_as_torch(attend, q, k, v, mask)) == ["attention", "attention_merge"] * 2


def test_every_part_may_be_a_task_of_its_own():
    q, k = heads(2, 8, 1, 64), heads(2, 2, 3000, 64)
    for workers in (1, 3, 64):
        fast = mkc.compile(lambda q, k: grouped(q, k, k), (q, k), target=machine(workers), fallback="error")
        torch.testing.assert_close(fast(q, k), grouped(q, k, k))
        tasks = fast.compilation.sections[0].tasks
        assert sum(tasks.node_of(t).op == "attention" for t in range(len(tasks.tasks))) >= workers


def test_not_a_number_stays_one():
    q, k, v = heads(1, 2, 3, 32), heads(1, 2, 20, 32), heads(1, 2, 20, 32)
    q[0, 0, 1, 5] = torch.nan
    assert_as_torch(grouped, q, k, v)


def test_values_may_be_wider_or_narrower_than_keys_and_the_scale_is_free():
    def attend(q, k, narrow, wide):
        return [grouped(q, k, narrow, scale=0.3), grouped(q, k, wide)]

    assert_as_torch(attend, heads(1, 2, 3, 48), heads(1, 2, 9, 48), heads(1, 2, 9, 20), heads(1, 2, 9, 65))


def test_three_dimensions_and_broadcast_keys():
    def attend(q, k, three):
        return [
            grouped(q, k.expand(3, 4, 9, 32), k.expand(3, 4, 9, 32)),
            F.scaled_dot_product_attention(three, three, three),
        ]

    fast = assert_as_torch(attend, heads(3, 4, 5, 32), heads(1, 1, 9, 32), torch.randn(2, 7, 32))
    assert ops(fast) == ["attention", "attention"]


def test_heads_are_read_from_a_projection_and_joined_again_without_copies():
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.qkv, self.out = nn.Linear(96, 3 * 96), nn.Linear(96, 96)

        def forward(self, x):
            q, k, v = (t.unflatten(-1, (3, 32)).transpose(1, 2) for t in self.qkv(x).chunk(3, -1))
            return self.out(
                F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2)
            )

    with torch.no_grad():
        model, x = Block().eval(), torch.randn(2, 11, 96)
        fast = mkc.compile(model, x, fallback="error")
        torch.testing.assert_close(fast(x), model(x))
    assert ops(fast) == ["linear", "attention", "linear"]


def repeated(q, k, v, mask):
    k, v = (x[:, :, None].expand(-1, -1, 2, -1, -1).reshape(x.shape[0], -1, *x.shape[2:]) for x in (k, v))
    return F.scaled_dot_product_attention(q, k, v, mask)


def test_keys_that_were_repeated_by_hand_are_read_where_they_were():
    q, k, v = heads(2, 6, 1, 32), heads(2, 3, 21, 32), heads(2, 3, 21, 32)
    fast = assert_as_torch(repeated, q, k, v, torch.rand(2, 1, 1, 21) < 0.5)
    assert ops(fast) == ["attention"]


def test_a_mask_made_by_comparing_positions_is_never_built():
    def attend(q, k, v, position):
        keys = torch.arange(64, device=q.device) + 0
        rows = torch.arange(3, device=q.device) + position
        return repeated(
            q, k, v, (keys[None, None, None, :] <= rows[None, None, :, None]).expand(1, -1, 3, 64)
        )

    q, k, v = heads(1, 4, 3, 32), heads(1, 2, 64, 32), heads(1, 2, 64, 32)
    for position in (0, 9, 61, 1000):
        fast = assert_as_torch(attend, q, k, v, torch.tensor(position))
        assert ops(fast) == ["elementwise", "attention"]


WINDOWS = {
    "after": lambda keys, rows: (keys <= rows) & (keys > rows - 9),
    "from": lambda keys, rows: torch.logical_and(rows - 8 <= keys, rows >= keys),
    "shifted": lambda keys, rows: torch.ones_like(keys, dtype=torch.bool) & (keys + 9 > rows) & (rows + 1 > keys) & (keys < rows + 4),
}


@pytest.mark.parametrize("spelling", WINDOWS)
@pytest.mark.parametrize(("room", "count"), [(40, 3), (700, 1)])
def test_a_sliding_window_is_seen_in_its_mask_and_nothing_before_it_is_read(spelling, room, count):
    def attend(q, k, v, position):
        keys, rows = torch.arange(room), torch.arange(count) + position
        return grouped(q, k, v, WINDOWS[spelling](keys[None, None, None, :], rows[None, None, :, None]))

    q, k, v = heads(1, 4, count, 32), heads(1, 2, room, 32), heads(1, 2, room, 32)
    fast = mkc.compile(attend, (q, k, v, torch.tensor(0)), target=machine(5), fallback="error")
    assert "elementwise" not in ops(fast)[1:]
    for position in (0, 5, 9, 30, room - count):
        unseen = torch.arange(room)[:, None]
        hidden = (unseen <= position - 9) | (unseen >= position + count)
        hide = [x.masked_fill(hidden, torch.nan) for x in (k, v)]
        torch.testing.assert_close(fast(q, *hide, torch.tensor(position)), attend(q, k, v, torch.tensor(position)))


@pytest.mark.parametrize("spelling", WINDOWS)
def test_sequences_have_a_window_each_at_a_position_of_its_own(spelling):
    """Also where rows stand in the mask as sequences do outside of it, as in a batch that decodes."""

    def attend(q, k, v, positions):
        mask = WINDOWS[spelling](torch.arange(40)[None, None, None, :], positions[None, None, :, None])
        return grouped(q, k, v, mask.transpose(0, 2).expand(-1, 4, -1, -1))

    q, k, v = heads(3, 4, 1, 32), heads(3, 2, 40, 32), heads(3, 2, 40, 32)
    fast = mkc.compile(attend, (q, k, v, torch.tensor([0, 1, 2])), target=machine(5), fallback="error")
    attention = next(n for n in fast.compilation.sections[0].tasks.graph.nodes if n.op == "attention")
    assert attention["window"] == 9
    for positions in (torch.tensor([0, 9, 39]), torch.tensor([20, 8, 1])):
        torch.testing.assert_close(fast(q, k, v, positions), attend(q, k, v, positions))


@pytest.mark.parametrize(
    "mask",
    [
        lambda keys, rows: (keys <= rows + 1) & (keys > rows - 9),
        lambda keys, rows: (keys <= rows) & (keys < rows - 9),
        lambda keys, rows: (keys <= rows) & (keys > 3),
        lambda keys, rows: (keys <= rows) & (keys != 3),
        lambda keys, rows: (keys <= rows) | (keys > rows + 3),
        lambda keys, rows: keys > rows - 9,
    ],
)
def test_what_is_no_window_stays_a_mask(mask):
    def attend(q, k, v, position):
        keys, rows = torch.arange(40), torch.arange(3) + position
        return grouped(q, k, v, mask(keys[None, None, None, :], rows[None, None, :, None]))

    q, k, v = heads(1, 4, 3, 32), heads(1, 2, 40, 32), heads(1, 2, 40, 32)
    for position in (0, 9, 36):
        assert_as_torch(attend, q, k, v, torch.tensor(position))


def test_heads_and_rows_are_shared_out_for_many_workers():
    q, k = heads(2, 8, 40, 64), heads(2, 2, 300, 64)
    counts = []
    for workers in (1, 2, 4, 16, 64):
        fast = mkc.compile(lambda q, k: grouped(q, k, k), (q, k), workers=workers)
        counts.append(len(fast.compilation.sections[0].tasks.tasks))
        torch.testing.assert_close(fast(q, k), grouped(q, k, k))
    assert counts == [1, 2, 4, 16, 64]


def test_reference_of_attention_is_torchs():
    def attend(q, k, mask, one, many):
        few = [grouped(q, k, k, mask), grouped(q, k, k, is_causal=True)]
        return [*few, grouped(one, many, many), grouped(one, many, many, many[:, :, None, :, 0] < 1)]

    inputs = heads(2, 4, 7, 32), heads(2, 2, 33, 32), torch.rand(1, 1, 7, 33) < 0.3
    assert_reference_agrees(attend, *inputs, heads(1, 2, 1, 32), heads(1, 1, 700, 32))
