"""The shapes of a run: what is asked for is honoured or refused, and every length has a bucket."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.compilation.options import DecodeOptions, choose_options
from engine.errors import NoFeasiblePlan
from engine.planning.buckets import MIN_ROWS, Parts


def choose(**changes) -> DecodeOptions:
    asked = {
        "platform": "cpu",
        "context_tokens": 2048,
        "page_bytes_per_token": 1000,
        "cache_budget_bytes": 2 << 30,
        "slots": None,
        "max_length": None,
    }
    return choose_options(**(asked | changes))


@given(st.integers(2, 200_000), st.sampled_from([16, 64, 128]), st.integers(1, 10_000))
def test_every_length_has_a_bucket_that_programs_can_use(longest: int, page_tokens: int, prefill_tokens: int) -> None:
    options = DecodeOptions(8, longest, 100, page_tokens, 16, prefill_tokens, "loop")
    assert options.buckets == tuple(sorted(set(options.buckets)))
    assert len(options.buckets) <= 40, "programs must be few"
    assert options.buckets[-1] >= longest
    for tokens in {1, longest // 2 + 1, longest}:
        bucket = options.bucket(tokens)
        assert bucket >= tokens
        assert options.rows(bucket) >= 1
    for bucket in options.buckets:
        assert bucket <= page_tokens or bucket % page_tokens == 0, "a prefilled row is written page by page"


def test_slots_and_length_are_honoured() -> None:
    options = choose(slots=5, max_length=100)
    assert (options.slots, options.max_length) == (5, 100)
    assert options.slot_rows == MIN_ROWS
    assert choose(slots=40).slot_rows == 40
    assert choose().max_length == 2048


def test_tokens_of_a_prefill_are_honoured() -> None:
    chosen = {"context_tokens": 4096, "page_bytes_per_token": 1024, "cache_budget_bytes": 2**34, "max_length": 1024}
    assert choose_options(platform="tpu", **chosen).rows(512) == 16
    assert choose_options(platform="tpu", prefill_tokens=65_536, **chosen).rows(512) == 128
    assert choose_options(platform="cpu", prefill_tokens=2048, **chosen).rows(512) == 4


def test_the_cache_holds_what_all_slots_need_or_what_memory_allows() -> None:
    options = choose(slots=4, max_length=640)
    assert options.pages == 4 * 10 + 1
    small = choose(slots=4, max_length=640, cache_budget_bytes=20 * 64 * 1000)
    assert small.pages == 20
    shorter = choose(context_tokens=1 << 20, cache_budget_bytes=20 * 64 * 1000)
    assert shorter.max_length == 19 * 64, "with no length asked for, the longest that fits"


def test_on_an_accelerator_slots_have_pages_of_their_own_if_all_of_them_fit() -> None:
    asked = {"platform": "tpu", "slots": 16, "max_length": 640}
    own = choose(**asked, cache_budget_bytes=16 * 640 * 1000)
    assert (own.attention, own.pages_in_part, own.positions_in_page) == ("contiguous", 16, 640)
    assert {own.pages_of(positions) for positions in (1, 128, 640)} == {1}
    shared = choose(**asked, cache_budget_bytes=16 * 640 * 1000 - 1)
    assert (shared.attention, shared.pages_in_part, shared.positions_in_page) == ("paged", 79, 128)
    assert shared.pages_of(129) == 2
    assert choose().attention == "loop"


@pytest.mark.parametrize(
    ("attention", "parts", "held"),
    [
        ("contiguous", Parts(4, 4, 1, 4, 1), (2, 704)),
        ("contiguous", Parts(4, 1, 4, 1, 1), (8, 192)),
        ("paged", Parts(4, 1, 4, 1, 1), (50, 64)),
    ],
)
def test_a_part_of_the_cache_holds_its_slots_or_its_share_of_all(attention, parts: Parts, held) -> None:
    options = DecodeOptions(8, 700, 50, 64, 16, 256, attention, parts=parts)
    assert (options.pages_in_part, options.positions_in_page) == held


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"slots": 0}, "slots must be at least 1"),
        ({"max_length": 1}, "between 2 and the model's context of 2048"),
        ({"max_length": 2049}, "between 2 and the model's context of 2048"),
        ({"max_length": 2048, "cache_budget_bytes": 1_000_000}, "Lower engine.max_length"),
        ({"cache_budget_bytes": 1000}, "KV cache may take"),
    ],
)
def test_what_cannot_be_had_is_refused(changes: dict, says: str) -> None:
    with pytest.raises(NoFeasiblePlan, match=says):
        choose(**changes)
