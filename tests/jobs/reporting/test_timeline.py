"""When shards were open, by hand; and that tokens spread over time add up to those that were counted."""

from __future__ import annotations

import dataclasses
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jobs.reporting.run_chart import MOST_LANES, run_chart
from jobs.reporting.timeline import timeline
from schemas.manifest import ShardEntry
from tests.jobs.test_status import ENTRY


def _shard(number: int, start: float, seconds: float, tokens: int = 100, **engine: float) -> ShardEntry:
    minute, second = divmod(start, 60)
    at = f"2026-01-31T12:{int(minute):02}:{second:06.3f}+00:00"
    return dataclasses.replace(
        ENTRY, shard=number, started_at=at, seconds=seconds, completion_tokens=tokens, prompt_tokens=7, engine=engine
    )


def test_two_at_a_time_are_two_lanes() -> None:
    time = timeline([_shard(0, 0, 10), _shard(1, 1, 5), _shard(2, 6, 4), _shard(3, 10, 2)])
    assert time is not None
    assert [span.lane for span in time.spans] == [0, 1, 1, 0]
    assert len(time.lanes) == 2
    assert time.seconds == pytest.approx(12)


def test_a_pause_is_cut_out_and_marked() -> None:
    time = timeline([_shard(0, 0, 10), _shard(1, 610, 10), _shard(2, 615, 10)])
    assert time is not None
    assert [(pause.at, pause.seconds) for pause in time.pauses] == [(pytest.approx(10), pytest.approx(600))]
    assert [(span.start, span.end) for span in time.spans] == [
        (pytest.approx(0), pytest.approx(10)),
        (pytest.approx(10), pytest.approx(20)),
        (pytest.approx(15), pytest.approx(25)),
    ]


def test_tokens_per_second_and_shares() -> None:
    busy = {"slot_steps_busy": 30.0, "slot_steps_total": 40.0}
    time = timeline([_shard(0, 0, 10, 1000, **busy), _shard(1, 0, 10, 500, **busy)])
    assert time is not None
    assert time.generated == pytest.approx(np.full(120, 150.0))
    assert time.slots_busy == pytest.approx(np.full(120, 0.75))
    assert time.useful_prefill is None


@settings(max_examples=40)
@given(
    st.lists(
        st.tuples(st.floats(0, 3000), st.floats(0, 500), st.integers(0, 10**6)),
        min_size=1,
        max_size=30,
    )
)
def test_what_is_spread_adds_up_and_no_two_share_a_place(shards: list[tuple[float, float, int]]) -> None:
    entries = [
        _shard(i, round(start, 3), round(seconds, 3), tokens) for i, (start, seconds, tokens) in enumerate(shards)
    ]
    time = timeline(entries)
    assert time is not None
    width = time.seconds / len(time.generated)
    assert float(time.generated.sum()) * width == pytest.approx(sum(e.completion_tokens for e in entries), rel=1e-6)
    assert (time.generated >= 0).all()
    for lane in range(len(time.lanes)):
        spans = sorted((span.end, span.start) for span in time.spans if span.lane == lane)
        assert all(start >= end - 2e-3 for (end, _), (_, start) in pairwise(spans))


def test_no_shard_is_no_timeline() -> None:
    assert timeline([]) is None


def test_thousands_of_shards_stay_a_small_drawing() -> None:
    time = timeline([_shard(i, i * 0.01, 0.02) for i in range(6_000)])
    assert time is not None
    assert len(run_chart(time)) < 500_000


def test_more_lanes_than_can_be_drawn_become_a_count() -> None:
    time = timeline([_shard(i, 0, 10) for i in range(MOST_LANES + 1)])
    assert time is not None
    drawn = run_chart(time)
    assert "Shards open" in drawn
    assert f"shards open {MOST_LANES + 1}" in drawn
