"""Language models whose sequences share pages answer as with caches of their own, whichever pages they have."""

from random import Random
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from test_lm import PROMPTS, expected, tiny, tiny_gemma3

import mkc
from mkc.frontend.pages import NOBODYS, Pages

transformers = pytest.importorskip("transformers")

rooms = st.lists(st.lists(st.integers(1, 40), min_size=1, max_size=4), min_size=1, max_size=6)


@given(rooms, st.integers(1, 9), st.integers(1, 40))
def test_no_page_is_two_sequences_and_all_come_back(asked: list[list[int]], size: int, count: int) -> None:
    pages = Pages(size, count, 4, 40)
    for together in asked:
        wanted = [-(-room // size) for room in together]
        if sum(wanted) > count:
            with pytest.raises(mkc.InputError, match=f"{count} are free, for {count * size} tokens"):
                pages.share_out(together)
        else:
            taken = pages.share_out(together)
            assert [len(each) for each in taken] == wanted
            held = [page for each in taken for page in each]
            assert len({*held, *pages.free}) == len(held) + len(pages.free) == count
            assert NOBODYS not in held
            pages.take_back()
        assert sorted(pages.free) == [*range(1, count + 1)]


def shuffled(model: Any, **options: Any) -> Any:
    lm = mkc.CausalLM(model, **(dict(max_length=48, chunk=4, workers=2, page=8) | options))
    Random(1).shuffle(lm.state.pages.free)
    return lm


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("Qwen3", {"head_dim": 16}),
        pytest.param("Llama", {"num_key_value_heads": 4}, marks=pytest.mark.slow),
        pytest.param("Qwen2", {"num_key_value_heads": 1}, marks=pytest.mark.slow),
        ("Gemma3", {"head_dim": 16, "sliding_window": 5, "layer_types": ["sliding_attention", "full_attention"]}),
    ],
)
def test_sequences_in_pages_are_answered_as_alone(kind: str, changes: dict[str, Any]) -> None:
    model = tiny(kind, **changes) if kind != "Gemma3" else tiny_gemma3(**changes)
    told = [expected(model, ids, 12) for ids in PROMPTS]
    lm = shuffled(model, batch=4)
    assert lm.generate_ids(PROMPTS, 12) == told
    assert lm.generate_ids(PROMPTS[2:0:-1], 12) == told[2:0:-1]  # with rows to spare
    assert lm.generate_ids(PROMPTS[2], 12) == told[2]


def test_all_sequences_have_room_where_no_pool_is_asked_for() -> None:
    model = tiny("Qwen3")
    lm = shuffled(model, batch=4, page=40, max_length=41)
    assert lm.generate_ids(PROMPTS, 12) == [expected(model, ids, 12) for ids in PROMPTS]
    assert (lm.state.pages.count, len(lm.generate_ids([[1]] * 4, 40))) == (8, 4)


@pytest.mark.parametrize("page", [1, 64, *(pytest.param(page, marks=pytest.mark.slow) for page in (5, 16))])
def test_one_sequence_may_have_pages_of_any_size(page: int) -> None:
    model = tiny("Qwen3")
    lm = shuffled(model, page=page)
    for ids in PROMPTS:
        assert lm.generate_ids(ids, 12) == expected(model, ids, 12)


def test_pages_that_a_sequence_does_not_have_are_neither_read_nor_written() -> None:
    """They are not numbers when a run begins (MKC_POISON), and when it is over."""
    model = tiny("Qwen3")
    lm = shuffled(model, batch=3, prompt_steps=4, pool=200)
    prompts = PROMPTS[1:3]  # of which the second is read by a kernel of its own, in chunks that reach beyond its end
    assert lm.generate_ids(prompts, 6) == [expected(model, ids, 6) for ids in prompts]
    used = {int(page) for page in lm.state.table.flatten()}
    assert len(used) == 2 + 3 + 1
    others = [page for page in range(lm.state.pages.count + 1) if page not in used]
    assert len(others) > 10
    assert all(cache[others].isnan().all() for cache in lm.state.caches)


def test_a_sequence_ends_with_its_room_and_the_run_with_the_last_of_them() -> None:
    model = tiny("Qwen3", vocab_size=500)
    told = [expected(model, ids, 12) for ids in PROMPTS]
    model.generation_config.eos_token_id = told[2][3]
    lm = shuffled(model, batch=4, max_length=64)
    assert lm.generate_ids(PROMPTS, 12) == [expected(model, ids, 12) for ids in PROMPTS]
    assert lm.state.tensors[2].tolist() == [12, 14, 11 + 3, 15]  # none beyond the tokens that were asked for
    assert lm.state.tensors[4]


def test_a_pool_holds_sequences_of_different_lengths_that_would_not_fit_side_by_side() -> None:
    model = tiny("Qwen3")
    lm = shuffled(model, batch=4, pool=64)  # 4 of 48 tokens would take 192
    assert lm.state.caches[0].shape == (9, 2, 8, 128)
    prompts = [[7], [3, 9, 27], [5], list(range(1, 33))]
    for _ in range(3):
        assert lm.generate_ids(prompts, 5) == [expected(model, ids, 5) for ids in prompts]
        assert sorted(lm.state.pages.free) == [*range(1, 9)]


def test_a_pool_that_is_too_small_says_how_many_tokens_fit_and_stays_whole() -> None:
    lm = shuffled(tiny("Qwen3"), batch=4, pool=64)
    message = r"2 sequences of 42, 43 tokens, prompt and answer, take 12 pages of 8; 8 are free, for 64 tokens: .* pool=96"
    for _ in range(2):
        with pytest.raises(mkc.InputError, match=message):
            lm.generate_ids([[1] * 30, [1] * 31], 12)
    assert lm.generate_ids([1] * 30, 12) == expected(lm.model, [1] * 30, 12)


@pytest.mark.parametrize("options", [{"page": 0}, {"page": -8}, {"pool": 64}, {"page": 8, "pool": 7}, {"page": 8, "pool": 0}])
def test_pages_and_pools_that_make_no_sense_are_refused(options: dict[str, int]) -> None:
    with pytest.raises(mkc.InputError, match="must be a number of tokens, from 1, and pool="):
        mkc.CausalLM(tiny("Qwen3"), **options)


def test_logits_of_texts_in_pages_are_those_of_texts_side_by_side() -> None:
    model = tiny("Qwen3")
    texts = [[1, 2, 3], [9], [30, 31, 32, 33, 34, 35, 36, 37, 38]]
    apart = mkc.CausalLM(model, batch=3, max_length=32, chunk=8, workers=2).logits(texts)
    for mine, theirs in zip(shuffled(model, batch=3).logits(texts), apart, strict=True):
        torch.testing.assert_close(mine, theirs)


def test_decoding_goes_on_from_the_middle_of_texts_in_pages() -> None:
    model = tiny("Qwen3")
    lm = shuffled(model, batch=2)
    ids, told = list(range(1, 12)), expected(model, list(range(1, 12)), 8)
    lm.generate_ids([ids, ids], 8)
    pools = [pool.clone() for pool in lm.state.caches]
    table = lm.state.table.clone()
    lm.stand_at(11, [told[:1], told[:1]], 5)
    for cache, pool in zip(lm.state.caches, pools, strict=True):  # the rows that were read before, in the pages that they have now
        for new, old in zip(lm.state.table[:, :3].tolist(), table[:, :3].tolist(), strict=True):
            cache[new] = pool[old]
    lm.decode_on(5)
    assert lm.state.told()[:, 11:17].tolist() == [told[:6], told[:6]]
