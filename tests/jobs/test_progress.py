"""Live progress: rates over the last half minute, a redrawn line in a terminal and plain lines elsewhere."""

from __future__ import annotations

import io
import time

import pytest
from rich.console import Console

from jobs import progress
from jobs.progress import Counts, Progress, Rates, describe


def _rates(*seen: tuple[float, int, int]) -> Rates:
    rates = Rates()
    for seconds, done, tokens in seen:
        rates.add(seconds, Counts(done, 0, tokens))
    return rates


def test_rates_forget_what_is_older_than_the_window() -> None:
    rates = _rates((0, 0, 0), (10, 10, 1000))
    assert (rates.records, rates.tokens) == (1, 100)
    rates = _rates((0, 0, 0), (50, 10, 1000), (60, 30, 1000))
    assert (rates.records, rates.tokens) == (2, 0)


def test_there_is_no_rate_before_time_has_passed() -> None:
    assert _rates((0, 5, 5)).records == 0
    assert _rates((0, 5, 5), (0, 6, 6)).records == 0


@pytest.mark.parametrize(
    ("counts", "rates", "line"),
    [
        (Counts(0, 0, 0), _rates((0, 0, 0)), "0 of 10,000 rows done, 0 failed"),
        (
            Counts(1000, 3, 50_000),
            _rates((0, 0, 0), (10, 1000, 50_000)),
            "1,000 of 10,000 rows done, 3 failed, 5,000 tokens/s, about 1 min 30 s left",
        ),
        (
            Counts(10_000, 3, 50_000),
            _rates((0, 0, 0), (10, 10_000, 50_000)),
            "10,000 of 10,000 rows done, 3 failed, 5,000 tokens/s",
        ),
    ],
)
def test_a_run_in_one_line(counts: Counts, rates: Rates, line: str) -> None:
    assert describe(counts, rates, 10_000) == line


@pytest.mark.parametrize("is_terminal", [False, True])
def test_counts_are_shown_while_the_block_runs(monkeypatch: pytest.MonkeyPatch, is_terminal: bool) -> None:
    monkeypatch.setattr(progress, "LINE_SECONDS", 0.01)
    monkeypatch.setattr(progress, "REDRAW_SECONDS", 0.01)
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=is_terminal, width=120)
    with Progress("capitals", 100, lambda: Counts(40, 2, 80), console):
        deadline = time.monotonic() + 10
        while "40 of 100" not in screen.getvalue():
            assert time.monotonic() < deadline
            time.sleep(0.01)
    shown = screen.getvalue()
    assert ("\x1b" in shown) is is_terminal
    if not is_terminal:
        assert shown.splitlines()[0] == "capitals: 40 of 100 rows done, 2 failed"


def test_a_short_run_prints_no_line() -> None:
    screen = io.StringIO()
    with Progress("capitals", 100, lambda: Counts(0, 0, 0), Console(file=screen)):
        pass
    assert screen.getvalue() == ""
