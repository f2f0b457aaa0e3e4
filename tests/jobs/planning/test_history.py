"""How earlier runs went: the correction by hand, and a file that anybody may have spoilt."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from jobs.planning import history
from jobs.planning.history import Correction, Earlier, History, read_history, remember

RUN = Earlier("m", "v5e", "j", foreseen_seconds=10.0, seconds=20.0, startup_seconds=30.0, completion_tokens=12.0)


def test_without_runs_the_model_stands_as_it_is() -> None:
    assert Correction.of([], 0.3) == Correction(1.0, 0.3, 0)


def test_the_model_itself_counts_as_one_run() -> None:
    one = Correction.of([4.0], 0.3)
    assert (one.factor, one.runs) == (pytest.approx(2.0), 1)
    assert one.error_fraction == pytest.approx(math.sqrt((0.09 + math.log(2) ** 2) / 2))
    three = Correction.of([2.0] * 3, 0.0)
    assert three.factor == pytest.approx(2**0.75)
    assert three.error_fraction == pytest.approx(math.log(2) / 4 * math.sqrt(3 / 4))


def test_the_interval_narrows_only_as_runs_agree() -> None:
    errors = [Correction.of([1.0] * runs, 0.3).error_fraction for runs in range(6)]
    assert errors == sorted(errors, reverse=True)
    assert errors[1] == pytest.approx(0.3 / math.sqrt(2))
    assert Correction.of([0.2, 5.0, 0.2, 5.0], 0.3).error_fraction > 0.3


def test_only_runs_of_the_same_model_and_chip_count_and_the_last_ones() -> None:
    others = [replace(RUN, model="other", seconds=1.0), replace(RUN, chip="v4", seconds=1.0)]
    known = History((*others, RUN, *others))
    assert known.correction("m", "v5e", 0.1).factor == pytest.approx(math.sqrt(2))
    assert known.startup("m", "v5e") == (1, 30.0)
    assert known.startup("m", "v6e") == (0, None)
    assert known.completion_tokens("j") == (12.0, 5)
    assert known.completion_tokens("k") is None
    many = History((replace(RUN, seconds=1.0),) + (RUN,) * history.RUNS)
    assert many.correction("m", "v5e", 0.1).factor == pytest.approx(2 ** (history.RUNS / (history.RUNS + 1)))


def test_runs_are_read_as_they_were_remembered(tmp_path: Path) -> None:
    path = tmp_path / "new" / "history.jsonl"
    assert read_history(path) == History()
    remember(RUN, path)
    remember(replace(RUN, startup_seconds=None), path)
    remember(replace(RUN, seconds=math.nan), path)  # says nothing, so it is not kept
    remember(replace(RUN, foreseen_seconds=0.0), path)
    assert read_history(path) == History((RUN, replace(RUN, startup_seconds=None)))


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"\xff\xfe",
        b"[]",
        b"{" * 100_000,
        json.dumps(asdict(RUN) | {"seconds": -1.0}).encode(),
        json.dumps(asdict(RUN) | {"seconds": 1e9}).encode(),
        json.dumps(asdict(RUN) | {"more": 1}).encode(),
        json.dumps(asdict(RUN) | {"seconds": "long"}).encode(),
        json.dumps(asdict(RUN))[:40].encode(),
        json.dumps(asdict(RUN)).replace("20.0", "NaN").encode(),
    ],
)
def test_a_line_that_is_no_run_is_left_out_and_said(tmp_path: Path, line: bytes) -> None:
    path = tmp_path / "history.jsonl"
    remember(RUN, path)
    path.write_bytes(path.read_bytes() + line + b"\n")
    remember(RUN, path)
    known = read_history(path)
    assert known.runs == (RUN, RUN)
    assert known.note == f"1 of 3 lines of {path} are no runs and do not count; delete it to start afresh"


def test_the_file_stays_small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(history, "_MOST_BYTES", 2000)
    monkeypatch.setattr(history, "_KEPT_LINES", 3)
    path = tmp_path / "history.jsonl"
    for _ in range(50):
        remember(RUN, path)
        assert path.stat().st_size < 2300
    assert read_history(path).note is None
    path.write_bytes(b"x" * 5000 + b"\n" + json.dumps(asdict(RUN)).encode() + b"\n")
    assert read_history(path).runs == (RUN,)  # the end of it, from the first whole line on


def test_what_cannot_be_written_or_read_stops_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").touch()
    remember(RUN, tmp_path / "file" / "history.jsonl")
    assert "not remembered" in caplog.text
    assert "cannot be read" in (read_history(tmp_path).note or "")
