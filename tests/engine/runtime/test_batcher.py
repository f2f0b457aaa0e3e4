"""The batcher alone: whatever arrives, everything finishes, and slots and pages are never promised twice."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from concurrent.futures import Future
from itertools import count
from random import Random

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from engine.cache.forms import Attention
from engine.compilation.options import DecodeOptions
from engine.planning.buckets import Parts
from engine.runtime.batcher import Batcher, Scoring
from engine.runtime.group import Group, Sample
from engine.runtime.request import GenerateRequest, Generation, Sampling, ScoreRequest
from engine.runtime.slot_memory import OwnPages, SharedPages
from engine.runtime.smaller import smaller

NUMBERS = count()  # no two prompts share a token, so a page shows whose it is
GENERATION = Generation((1,), (0.0,), "length")


def options(slots: int = 4, pages: int = 34, parts: Parts = Parts(), attention: Attention = "loop") -> DecodeOptions:
    return DecodeOptions(
        slots=slots,
        max_length=64,
        pages=pages,
        page_tokens=8,
        chunk_steps=4,
        prefill_tokens=32,
        attention=attention,
        parts=parts,
    )


def group(prompt: int, max_tokens: int, samples: int = 1) -> Group:
    request = GenerateRequest(
        tuple(next(NUMBERS) for _ in range(prompt)), Sampling(max_tokens=max_tokens), samples=samples
    )
    return Group(request, min(max_tokens, 64 - prompt), Future())


def finish_one(batcher: Batcher, slot: int) -> None:
    batcher.finish(batcher.running[slot], GENERATION)


requests = st.tuples(st.integers(1, 60), st.integers(1, 64), st.integers(1, 6))


PARTS = st.sampled_from(
    [Parts(), Parts(2, 2, 1, 2, 1), Parts(4, 4, 1, 4, 1), Parts(4, 1, 4, 1, 1), Parts(2, 1, 2, 1, 1)]
)


@settings(deadline=None, max_examples=300)
@example([(1, 1, 1)] * 4 + [(10, 1, 2), (42, 1, 2), (10, 48, 2)], 1, 5, 1, Parts(4, 4, 1, 4, 1), "paged")
@given(
    st.lists(requests, min_size=1, max_size=30),
    st.integers(1, 6),
    st.integers(0, 40),
    st.integers(0, 99),
    PARTS,
    st.sampled_from(["paged", "contiguous"]),
)
def test_everything_finishes_and_nothing_is_promised_twice(asked, slots, spare_pages, seed, parts, attention) -> None:
    """Any requests, any number of slots, any parts, down to the fewest pages the options can have, from one moment to
    the next as well."""
    random = Random(seed)
    shape = options(slots, 8 // parts.of_sequence + 1 + spare_pages, parts, attention)
    batcher = Batcher(shape)
    contiguous = attention == "contiguous"
    groups = [group(*request) for request in asked]
    waiting = list(groups)
    contents: dict[tuple[int, int], tuple[int, ...]] = {}  # the prompt tokens each page of each part holds

    def placed(part: int, pages: Sequence[int]) -> list[tuple[int, int]]:
        """(part of the cache, page) of a sequence's pages."""
        return [(part if parts.of_sequence == 1 else at % parts.of_sequence, page) for at, page in enumerate(pages)]

    def pieces(prompt: tuple[int, ...]) -> list[tuple[int, ...]]:
        """What of a prompt is in each of its pages: a block of 8, or all blocks of a part."""
        blocks = [prompt[at : at + 8] for at in range(0, len(prompt), 8)]
        if not contiguous:
            return blocks
        return [sum(blocks[part :: parts.of_sequence], ()) for part in range(parts.of_sequence)]

    def prompt_of(sample: Sample) -> tuple[int, ...]:
        return sample.group.request.prompt[:-1]

    def assert_prompts_are_whole(samples: Iterable[Sample]) -> None:
        for sample in samples:
            if prompt := prompt_of(sample):
                for page, piece in zip(placed(sample.group.part, sample.pages), pieces(prompt), strict=False):
                    assert contents.get(page, ())[: len(piece)] == piece, "a sample runs on pages without its prompt"

    while waiting or batcher.samples_waiting or batcher.running:
        for _ in range(random.randint(0, 3)):
            if waiting:
                batcher.add(waiting.pop(0))
        admission = batcher.admit()
        for bucket, by_part in admission.prefills:
            assert len(by_part) == parts.of_slots
            assert any(by_part)
            for part, rows in enumerate(by_part):
                assert len(rows) <= shape.rows(bucket) // parts.of_slots
                assert all(len(row.token_ids) <= bucket for row in rows)
                for row in rows:
                    assert len(row.pages[:: parts.of_sequence]) <= shape.pages_of(bucket)
                    contents.update(zip(placed(part, row.pages), pieces(row.token_ids), strict=True))
        for part, pairs in enumerate(admission.copies):
            for source, target in pairs:
                contents[part, target] = contents[part, source]
        for sample in admission.samples:
            assert sample.slot // (shape.slot_rows // parts.of_slots) == sample.group.part
            if contiguous:
                assert sample.pages == [sample.slot % (shape.slot_rows // parts.of_slots)] * parts.of_sequence
        assert_prompts_are_whole(batcher.running.values())
        assert len(batcher.running) <= -(-slots // parts.of_slots) * parts.of_slots
        owners: dict[tuple[int, int], set[int]] = {}
        for sample in batcher.running.values():
            pages = placed(sample.group.part, sample.pages)
            assert len(set(pages)) == len(pages)
            assert all(0 <= page < shape.pages_in_part for _, page in pages)
            if not contiguous:
                assert len(pages) == -(-(sample.group.prefilled + sample.group.max_tokens) // 8)
            shareable = [] if contiguous else pages[: sample.group.prefilled // 8]
            for page in pages:
                owners.setdefault(page, set()).add(id(sample.group) if page in shareable else id(sample))
        assert all(len(owner) == 1 for owner in owners.values()), "a page that is written has two owners"
        if not waiting:
            assert batcher.running or not batcher.samples_waiting, "everything waits and nothing runs"
        for slot in list(batcher.running):
            if random.random() < 0.6:
                finish_one(batcher, slot)
        if random.random() < 0.1:  # the device's memory did not do
            shape = smaller(shape, "decode") or shape
            slots = shape.slots
            batcher = batcher.started_over(shape)
            contents.clear()
            assert not batcher.running
    for each in groups:
        assert len(each.future.result(timeout=0)) == each.request.samples
    assert_nothing_is_held(batcher)


def assert_nothing_is_held(batcher: Batcher) -> None:
    memory = batcher._memory
    if isinstance(memory, SharedPages):
        assert all(pool.free == batcher._options.pages for pool in memory.pools)
    else:
        assert isinstance(memory, OwnPages)
        assert not memory._running
    assert sum(map(len, batcher._free_slots)) == -(-batcher._options.slots // len(batcher._free_slots)) * len(
        batcher._free_slots
    )


def test_prefill_batches_take_one_bucket_together_and_the_oldest_first() -> None:
    batcher = Batcher(options(slots=4))
    for prompt in (30, 6, 31, 7, 29):
        batcher.add(group(prompt, 4))
    first = batcher.admit()
    assert [(bucket, len(rows)) for bucket, [rows] in first.prefills] == [(32, 1), (32, 1), (32, 1), (8, 1)]
    finish_one(batcher, first.samples[0].slot)
    second = batcher.admit()
    assert [len(sample.group.request.prompt) for sample in second.samples] == [7]


def test_a_prompt_of_one_token_needs_no_prefill() -> None:
    batcher = Batcher(options())
    batcher.add(group(1, 4))
    admission = batcher.admit()
    assert admission.prefills == []
    assert len(admission.samples) == 1


def test_samples_share_full_prompt_pages_and_copy_the_last() -> None:
    batcher = Batcher(options(slots=2))
    batcher.add(group(20, 4, samples=3))  # 19 positions: two full pages and a part of a third
    admission = batcher.admit()
    one, two = admission.samples
    assert len(admission.prefills) == 1
    assert one.pages[:2] == two.pages[:2]
    assert one.pages[2] != two.pages[2]
    assert admission.copies == [[(one.pages[2], two.pages[2])]]
    source = one.pages[2]
    finish_one(batcher, one.slot)
    later = batcher.admit()
    assert later.prefills == []
    assert later.samples[0].index == 2
    assert later.samples[0].pages[:2] == two.pages[:2]
    assert later.copies == [[(source, later.samples[0].pages[2])]]


def test_with_a_page_a_slot_samples_copy_their_prompt_from_one_that_runs() -> None:
    batcher = Batcher(options(slots=3, attention="contiguous"))
    batcher.add(group(20, 4, samples=5))
    first = batcher.admit()
    one, two, three = first.samples
    assert [(bucket, [row.pages for row in rows]) for bucket, [rows] in first.prefills] == [(24, [one.pages])]
    assert first.copies == [[(one.pages[0], two.pages[0]), (one.pages[0], three.pages[0])]]
    finish_one(batcher, one.slot)
    second = batcher.admit()
    assert second.prefills == []
    assert second.copies == [[(two.pages[0], second.samples[0].pages[0])]]
    for slot in list(batcher.running):
        finish_one(batcher, slot)
    last = batcher.admit()
    assert last.copies == [[]]
    assert [[row.pages for row in rows] for _, [rows] in last.prefills] == [[last.samples[0].pages]]


@pytest.mark.parametrize("attention", ["paged", "contiguous"])
def test_failing_a_request_frees_all_it_holds(attention: Attention) -> None:
    batcher = Batcher(options(slots=2, attention=attention))
    doomed = group(20, 4, samples=3)
    batcher.add(doomed)
    batcher.add(group(5, 4))
    batcher.admit()
    batcher.fail(doomed, ValueError("no"))
    assert isinstance(doomed.future.exception(timeout=0), ValueError)
    assert not batcher.running
    admission = batcher.admit()
    assert [len(sample.group.request.prompt) for sample in admission.samples] == [5]
    finish_one(batcher, admission.samples[0].slot)
    assert_nothing_is_held(batcher)


def test_scores_go_in_batches_of_one_bucket() -> None:
    batcher = Batcher(options())
    for tokens in (5, 30, 6, 31, 7, 8, 3):
        batcher.add_score(Scoring(ScoreRequest(tuple(range(tokens))), Future()))
    seen = []
    while batcher.scores_waiting:
        bucket, batch = batcher.next_scores()
        seen.append((bucket, [len(scoring.request.tokens) for scoring in batch]))
    assert seen == [(8, [5, 6, 7, 8]), (32, [30]), (32, [31]), (8, [3])]
