"""Counts and times in words."""

from __future__ import annotations

import pytest

from jobs.wording import duration, printable


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0.04, "0.0 s"),
        (9.94, "9.9 s"),
        (12.3, "12 s"),
        (59.4, "59 s"),
        (60, "1 min"),
        (61, "1 min 1 s"),
        (3600, "1 h"),
        (3660, "1 h 1 min"),
        (3661, "1 h 1 min"),
        (90_000, "1 d 1 h"),
        (86_460, "1 d"),
    ],
)
def test_durations(seconds: float, words: str) -> None:
    assert duration(seconds) == words


def test_printable_keeps_text_and_spells_out_the_rest() -> None:
    assert printable("é 東\n\t\x1b[2J") == "é 東\n\\t\\x1b[2J"
