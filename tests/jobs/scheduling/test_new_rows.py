"""With only_new_rows every content is scored once, wherever it turns up again, and its result can be found."""

from __future__ import annotations

import datetime
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs.scheduling import new_rows
from jobs.scheduling.run_due import window
from jobs.scheduling.state import current_files
from pipeline.records import content_hash
from pipeline.sources import read_rows
from pipeline.sources.base import WorkItem
from tests.jobs.scheduling.conftest import Place

DAILY = {
    "cron": "0 0 * * *", "output": "out/dt={{ ds }}", "input": "in/all/*.jsonl", "only_new_rows": True,
    "start": "2026-01-01",
}  # fmt: skip


def questions(place: Place, numbers: list[int], file: str = "a") -> Path:
    return place.write("all", numbers, file)


def rows(place: Place, day: str) -> list[int]:
    found = pq.read_table(place.out / f"dt=2026-01-0{day}", columns=["answer"])
    return found["answer"].to_pylist()


@pytest.mark.parametrize("block_rows", [2, 1 << 20])
def test_a_dump_that_grows_is_scored_once(place: Place, monkeypatch: pytest.MonkeyPatch, block_rows: int) -> None:
    monkeypatch.setattr(new_rows, "BLOCK_ROWS", block_rows)
    place.schedule(**DAILY)
    questions(place, [0, 1, 2, 3, 4])
    place.call("2026-01-02T00:00")
    questions(place, [5, 3, 0, 6, 1, 7])  # some new, in between, some gone
    place.call("2026-01-03T00:00")
    questions(place, [7, 6])  # nothing new
    place.call("2026-01-04T00:00")
    assert rows(place, "1") == [0, 1, 2, 3, 4]
    assert rows(place, "2") == [5, 6, 7]
    assert (place.out / "dt=2026-01-03" / "_SUCCESS").exists()
    assert list((place.out / "dt=2026-01-03").glob("part-*")) == []
    second = pq.read_table(place.out / "dt=2026-01-02", columns=["source_row", "answer"])
    assert second["source_row"].to_pylist() == [0, 3, 5]


def test_the_result_of_a_row_that_is_not_new_can_be_found(place: Place) -> None:
    place.schedule(**DAILY)
    questions(place, [0, 1])
    place.call("2026-01-02T00:00")
    questions(place, [1, 2])
    place.call("2026-01-03T00:00")
    (first, second) = sorted((place.out / "_rows").iterdir())
    assert pq.read_table(first)["scored_in"].to_pylist() == [None, None]
    assert pq.read_table(second)["scored_in"].to_pylist() == ["dt=2026-01-01", None]


def test_late_rows_are_an_addition_of_what_is_new(place: Place) -> None:
    place.schedule(**{**DAILY, "input": "in/dt={{ ds }}/*.jsonl"})
    place.write("dt=2026-01-01", [0, 1])
    place.call("2026-01-02T00:00")
    place.write("dt=2026-01-01", [0, 2, 1])
    place.call("2026-01-02T00:00")
    assert (place.out / "dt=2026-01-01" / "late-0002" / "_SUCCESS").exists()
    assert sorted(rows(place, "1")) == [0, 1, 2]
    (result,) = place.call("2026-01-02T00:00").values()
    assert result.shards_computed == 0


def test_rows_that_failed_are_new_again(place: Place) -> None:
    place.schedule(**DAILY)
    path = questions(place, [0, 1])
    good = path.read_text()
    path.write_text(good.replace('"answer": 1', '"answer": 1, "x": 1').replace('"question": "what is 1?", ', ""))
    place.call("2026-01-02T00:00")
    path.write_text(good.replace('"question": "what is 1?", ', "") + good.splitlines()[1] + "\n")
    place.call("2026-01-03T00:00")
    status = pq.read_table(place.out / "dt=2026-01-02", columns=["answer", "status"]).to_pylist()
    assert status == [{"answer": 1, "status": "failed"}, {"answer": 1, "status": "ok"}]


def test_a_dump_that_changes_under_an_unfinished_day_loses_and_doubles_nothing(
    place: Place, fake_engine: Callable[[str], None]
) -> None:
    place.schedule(**DAILY)
    questions(place, [0, 1, 2, 3, 4, 5])
    fake_engine("breaking_off")
    (result,) = place.call("2026-01-02T00:00").values()
    assert (result.state, rows(place, "1")) == ("failed", [0, 1])
    fake_engine("instant")
    questions(place, [5, 1, 2, 6])
    place.call("2026-01-03T00:00")
    looked_at = window(place.scheduled, datetime.datetime(2026, 1, 3, tzinfo=datetime.UTC))
    found = pq.read_table(list(current_files(place.scheduled, looked_at)), columns=["answer"])
    assert sorted(found["answer"].to_pylist()) == [1, 2, 5, 6]


def test_other_settings_make_every_row_new(place: Place) -> None:
    place.schedule(**DAILY)
    questions(place, [0, 1])
    place.call("2026-01-02T00:00")
    place.schedule(**DAILY, set={"sampling.max_tokens": 3})
    place.call("2026-01-03T00:00")
    assert rows(place, "2") == [0, 1]


def test_lookup_finds_what_a_set_would(place: Place) -> None:
    """Of many hashes with much in common, against known batches of several sizes."""
    source = new_rows.NewRows.__new__(new_rows.NewRows)

    @given(st.lists(st.integers(0, 20)), st.lists(st.lists(st.integers(0, 20))))
    def check(asked: list[int], known: list[list[int]]) -> None:
        def digest(number: int) -> bytes:
            return bytes.fromhex(content_hash({"n": number}))[:-1] + b"\0"  # ends with what numpy strips

        batches = [(str(i), new_rows.np.array([digest(n) for n in batch], "S32")) for i, batch in enumerate(known)]
        source._known = lambda: iter(batches)  # type: ignore[method-assign]
        found = source._looked_up([new_rows._Seen(digest(n), "f", i) for i, n in enumerate(asked)])
        firsts = [next((str(i) for i, batch in enumerate(known) if n in batch), None) for n in asked]
        assert [row.scored_in for row in found] == firsts

    check()


@given(st.lists(st.booleans(), min_size=1, max_size=40))
def test_a_work_item_may_have_only_some_rows(chosen: list[bool]) -> None:
    item = WorkItem(0, "x", "jsonl", "x", 100, len(chosen), 0, 1, (("a", "b"),)).selecting(chosen)
    assert WorkItem.from_json(item.to_json()) == item
    assert list(item.row_numbers()) == [100 + i for i, is_chosen in enumerate(chosen) if is_chosen]
    assert item.rows == sum(chosen)


def test_chosen_rows_are_read_with_their_numbers(tmp_path: Path) -> None:
    pq.write_table(pa.table({"n": range(6)}), tmp_path / "x.parquet")
    item = WorkItem(0, str(tmp_path / "x.parquet"), "parquet", "x.parquet", 2, 4, 2, 6)
    picked = read_rows(item.selecting([True, False, False, True]))
    assert [(row.row, row.values) for row in picked] == [(2, {"n": 2}), (5, {"n": 5})]
