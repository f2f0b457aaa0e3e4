"""Ticks through gaps and repetitions of the clock, and what is wrong with an expression."""

from __future__ import annotations

import datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs.scheduling.cron import Cron, time_zone
from pipeline.errors import JobError

BERLIN = time_zone("Europe/Berlin")


def ticks(expression: str, day: str, hours: int = 5) -> list[str]:
    start = datetime.datetime.fromisoformat(day).replace(tzinfo=BERLIN)
    found = Cron(expression, BERLIN).between(start, start.astimezone(datetime.UTC) + datetime.timedelta(hours=hours))
    return [tick.strftime("%H:%M%z") for tick in found]


def test_every_real_hour_has_a_tick_when_clocks_are_set_forward() -> None:
    assert ticks("0 * * * *", "2026-03-29", 4) == ["00:00+0100", "01:00+0100", "03:00+0200", "04:00+0200"]


def test_every_real_hour_has_a_tick_when_clocks_are_set_back() -> None:
    assert ticks("0 * * * *", "2026-10-25", 5) == [
        "00:00+0200", "01:00+0200", "02:00+0200", "02:00+0100", "03:00+0100",
    ]  # fmt: skip


def test_a_daily_time_that_is_skipped_comes_right_after_and_one_that_repeats_comes_once() -> None:
    assert ticks("30 2 * * *", "2026-03-29") == ["03:00+0200"]
    assert ticks("30 2 * * *", "2026-10-25") == ["02:30+0200"]


def test_a_time_within_the_repeated_hour_is_not_taken_for_the_first() -> None:
    second = datetime.datetime(2026, 10, 25, 2, 15, tzinfo=BERLIN, fold=1)
    assert next(Cron("30 2 * * *", BERLIN).after(second)).isoformat() == "2026-10-26T02:30:00+01:00"


@given(
    st.sampled_from(["0 * * * *", "*/20 * * * *", "30 2 * * *", "15 1-3 * * *", "0 0 * * SUN", "0 */6 1 * *"]),
    st.sampled_from(["Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "Pacific/Apia", "UTC"]),
    st.datetimes(datetime.datetime(2009, 1, 1), datetime.datetime(2030, 1, 1)),
)
def test_ticks_only_ever_go_forward(expression: str, zone: str, moment: datetime.datetime) -> None:
    start = moment.replace(tzinfo=datetime.UTC)
    following = Cron(expression, time_zone(zone)).after(start)
    last = start
    for tick, _ in zip(following, range(20), strict=False):
        now = tick.astimezone(datetime.UTC)
        assert now > last
        last = now


@pytest.mark.parametrize(
    ("expression", "problem"),
    [
        ("61 * * * *", "'61' is no minute"),
        ("* 25 * * *", "'25' is no hour"),
        ("* * 0 * *", "'0' is no day of month"),
        ("* * * 13 *", "'13' is no month"),
        ("* * * * 9", "'9' is no day of week"),
        ("*/0 * * * *", "'*/0' is no minute"),
        ("² * * * *", "'²' is no minute"),
        ("* * * *", "has 4 fields; write five"),
        ("0 0 0 1 1 1", "has 6 fields"),
        ("", "has 0 fields"),
        ("0 0 30 2 *", "never comes"),
        ("0 0 31 2,4 *", "never comes"),
    ],
)
def test_nonsense_is_refused_by_field(expression: str, problem: str) -> None:
    with pytest.raises(JobError) as error:
        Cron(expression, datetime.UTC)
    assert problem in str(error.value)


@pytest.mark.parametrize("name", ["Mars/Olympus", "", "../etc/passwd", "/etc/passwd", "Europe"])
def test_a_zone_that_is_none_is_refused(name: str) -> None:
    with pytest.raises(JobError, match="no time zone that this machine knows"):
        time_zone(name)
