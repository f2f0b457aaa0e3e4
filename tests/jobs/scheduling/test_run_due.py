"""What is due is run, what is done is left, what fails stops no other; late and changed input makes versions."""

from __future__ import annotations

import datetime
from collections.abc import Callable
from pathlib import Path

import duckdb
import pandas as pd
import pyarrow.parquet as pq
import pytest

from jobs.scheduling.run_due import window
from jobs.scheduling.state import current_files
from jobs.scheduling.versions import read_versions
from pipeline.errors import JobError
from tests.jobs.scheduling.conftest import Place
from tests.pipeline.example_output import contents

KEY = "dt=2026-01-05/hour=00"


def test_due_partitions_run_once_and_readers_see_their_rows(place: Place) -> None:
    for hour in range(3):
        place.write(f"dt=2026-01-05/hour=0{hour}")
    assert place.states("2026-01-05T02:30") == {"hour=00": "done", "hour=01": "done"}
    assert len(place.ids()) == 6
    frame = pd.read_parquet(place.out)
    assert set(frame["hour"].astype(int)) == {0, 1}
    before = contents(place.out)
    assert place.states("2026-01-05T02:59") == {"hour=00": "done", "hour=01": "done"}
    assert contents(place.out) == before
    assert [r.shards_computed for r in place.call("2026-01-05T03:00").values()] == [0, 0, 2]


def test_a_partition_is_left_alone_until_its_delay_is_over_and_then_late(place: Place) -> None:
    place.schedule(delay="30min")
    assert place.states("2026-01-05T01:29") == {"hour=00": "waiting"}
    assert place.states("2026-01-05T01:30") == {"hour=00": "late"}
    place.write(KEY)
    assert place.states("2026-01-05T01:31") == {"hour=00": "done"}


def test_a_missed_partition_is_caught_up_within_the_window_and_backfilled_beyond(place: Place) -> None:
    place.schedule(catch_up="2h")
    for hour in range(5):
        place.write(f"dt=2026-01-05/hour=0{hour}")
    assert list(place.states("2026-01-05T05:10")) == ["hour=03", "hour=04"]
    assert list(place.states("2026-01-05T05:10", first="2026-01-05T00:00", stop="2026-01-05T02:00")) == [
        "hour=00", "hour=01",
    ]  # fmt: skip
    assert len(list(place.out.rglob("_SUCCESS"))) == 4


def test_a_failure_does_not_stop_the_others_and_is_retried_only_so_often(place: Place) -> None:
    place.write(KEY).write_text("{}\n" * 3)  # no row has the columns
    place.write("dt=2026-01-05/hour=01")
    assert place.states("2026-01-05T02:00") == {"hour=00": "failed", "hour=01": "done"}
    attempts = place.out / "_attempts" / KEY
    assert len(list(attempts.glob("*.json"))) == 2
    assert place.states("2026-01-05T02:00") == {"hour=00": "failed", "hour=01": "done"}
    assert len(list(attempts.glob("*.json"))) == 2
    place.write(KEY)  # mended: the failures of before do not count
    assert place.states("2026-01-05T02:00") == {"hour=00": "done", "hour=01": "done"}


def test_files_that_come_late_are_added_and_readers_see_every_row_once(place: Place) -> None:
    place.write(KEY)
    place.call("2026-01-05T01:00")
    before = contents(place.out / KEY)
    place.write(KEY, range(3, 8), file="b")
    (result,) = place.call("2026-01-05T01:00").values()
    assert (result.state, result.shards_computed) == ("done", 3)
    assert (place.out / KEY / "late-0002" / "_SUCCESS").exists()
    assert place.ids() == sorted(f"{KEY}/{i}" for i in range(8))
    assert len(pd.read_parquet(place.out / KEY)) == 8
    everything = (
        f"SELECT count(*), min(dt) FROM read_parquet('{place.out}/dt=*/**/*.parquet', hive_partitioning = true)"
    )
    assert duckdb.sql(everything).fetchall() == [(8, datetime.date(2026, 1, 5))]
    assert {n: c for n, c in contents(place.out / KEY).items() if not n.startswith("late-")} == before
    place.write(KEY, range(8, 9), file="c")
    place.call("2026-01-05T01:00")
    assert place.ids() == sorted(f"{KEY}/{i}" for i in range(9))
    assert [v.number for v in read_versions(str(place.out), KEY).current] == [1, 2, 3]


def test_changed_files_make_a_replacement_that_directory_readers_do_not_see(place: Place) -> None:
    place.write(KEY)
    place.call("2026-01-05T01:00")
    place.write(KEY, range(10, 14))
    (result,) = place.call("2026-01-05T01:00").values()
    assert (result.state, result.shards_computed) == ("done", 2)
    assert place.ids() == sorted(f"{KEY}/{i}" for i in range(3))
    (current,) = read_versions(str(place.out), KEY).current
    assert current.output == f"{place.out}/_versions/{KEY}/v0002"
    found = pq.read_table([str(p) for p in sorted(Path(current.output).glob("part-*"))])
    assert found["record_id"].to_pylist() == [f"{KEY}/{i}" for i in range(10, 14)]
    assert set(found["hour"].to_pylist()) == {0}
    looked_at = window(place.scheduled, datetime.datetime(2026, 1, 5, 1, tzinfo=datetime.UTC))
    files = list(current_files(place.scheduled, looked_at))
    frame = pd.read_parquet(files)
    assert [*frame["record_id"]] == [f"{KEY}/{i}" for i in range(10, 14)]
    assert set(frame["dt"].astype(str)) == {"2026-01-05"}
    place.write(KEY, [20], file="b")
    place.call("2026-01-05T01:00")
    assert [v.output.rpartition("/")[2] for v in read_versions(str(place.out), KEY).current] == ["v0002", "late-0003"]
    assert place.states("2026-01-05T01:00") == {"hour=00": "done"}


@pytest.mark.parametrize("policy", ["refuse", "version"])
def test_a_partition_that_shrinks_is_replaced_only_where_that_is_allowed(place: Place, policy: str) -> None:
    place.schedule(late_data={"on_shrink": policy})
    place.write(KEY, range(4))
    gone = place.write(KEY, range(4, 6), file="b")
    place.call("2026-01-05T01:00")
    gone.unlink()
    expected = "refused" if policy == "refuse" else "done"
    assert place.states("2026-01-05T01:00") == {"hour=00": expected}
    assert (place.out / "_versions").exists() == (policy == "version")
    assert len(place.ids()) == 6


def test_a_changed_file_with_fewer_rows_is_refused_and_looked_at_once(place: Place) -> None:
    place.write(KEY, range(4))
    place.call("2026-01-05T01:00")
    place.write(KEY, range(3))
    for _ in range(2):
        (result,) = place.call("2026-01-05T01:00").values()
        assert (result.state, result.reason) == ("refused", "shrank: 3 rows, 4 before")
    assert len(list((place.out / "_attempts" / KEY).glob("*.json"))) == 2
    assert not (place.out / "_versions").exists()
    place.schedule(late_data={"on_shrink": "version"})
    assert place.states("2026-01-05T01:00") == {"hour=00": "done"}
    assert (place.out / "_versions" / KEY / "v0002" / "_SUCCESS").exists()


def test_changes_are_refused_where_the_schedule_says_so(place: Place) -> None:
    place.schedule(late_data={"on_change": "refuse"})
    place.write(KEY)
    place.call("2026-01-05T01:00")
    place.write(KEY, range(5))
    assert place.states("2026-01-05T01:00") == {"hour=00": "refused"}


def test_what_is_finished_is_watched_only_so_long(place: Place) -> None:
    place.schedule(late_data={"watch": "1h"})
    place.write(KEY)
    place.call("2026-01-05T01:00")
    place.write(KEY, range(5), file="b")
    assert place.states("2026-01-05T02:30")["hour=00"] == "done"
    assert not (place.out / KEY / "late-0002").exists()
    place.call("2026-01-05T02:30", first="2026-01-05")
    assert (place.out / KEY / "late-0002").exists()


def test_an_hour_without_rows_is_done(place: Place) -> None:
    place.write(KEY, [])
    assert place.states("2026-01-05T01:00") == {"hour=00": "done"}
    assert place.states("2026-01-05T01:00") == {"hour=00": "done"}
    assert (place.out / KEY / "_SUCCESS").exists()
    place.write("dt=2026-01-05/hour=01")
    place.call("2026-01-05T02:00")
    assert len(place.ids()) == 3


def test_what_broke_off_goes_on_with_the_files_it_was_planned_over(
    place: Place, fake_engine: Callable[[str], None]
) -> None:
    place.write(KEY)
    fake_engine("failing")
    assert place.states("2026-01-05T01:00") == {"hour=00": "failed"}
    assert (place.out / KEY / "_plan.json").exists()
    fake_engine("instant")
    place.write(KEY, range(3, 5), file="b")
    place.schedule(retries={"limit": 2, "backoff": "0s"})
    place.call("2026-01-05T01:00")
    assert place.ids() == sorted(f"{KEY}/{i}" for i in range(3))
    place.call("2026-01-05T01:00")
    assert place.ids() == sorted(f"{KEY}/{i}" for i in range(5))


@pytest.mark.parametrize("late_data", [{}, {"on_change": "refuse", "on_shrink": "refuse"}])
def test_what_broke_off_and_then_changed_is_replaced(
    place: Place, fake_engine: Callable[[str], None], late_data: dict[str, str]
) -> None:
    """Also where changes are refused: that is to protect results, and there are none yet."""
    place.schedule(late_data=late_data)
    place.write(KEY, range(6))
    fake_engine("breaking_off")
    assert place.states("2026-01-05T01:00") == {"hour=00": "failed"}
    broken_off = contents(place.out / KEY)
    assert sum(name.startswith("part-") for name in broken_off) == 1  # of three
    fake_engine("instant")
    place.write(KEY, range(1, 5))
    assert place.states("2026-01-05T01:00") == {"hour=00": "done"}
    (current,) = read_versions(str(place.out), KEY).current
    assert current.number == 2
    assert place.states("2026-01-05T01:00") == {"hour=00": "done"}
    assert contents(place.out / KEY) == broken_off
    assert files_now(place) == [f"{KEY}/{i}" for i in range(1, 5)]


def files_now(place: Place) -> list[str]:
    """The record ids in the files that `penstock schedule files` names."""
    looked_at = window(place.scheduled, datetime.datetime(2026, 1, 5, 1, tzinfo=datetime.UTC))
    return sorted(pd.read_parquet(list(current_files(place.scheduled, looked_at)))["record_id"])


def test_an_addition_that_broke_off_and_then_changed_is_replaced_with_all_the_rest(
    place: Place, fake_engine: Callable[[str], None]
) -> None:
    place.write(KEY, range(2))
    assert place.states("2026-01-05T01:00") == {"hour=00": "done"}
    place.write(KEY, range(2, 8), file="b")
    fake_engine("breaking_off")
    assert place.states("2026-01-05T01:00") == {"hour=00": "failed"}
    assert len(list((place.out / KEY / "late-0002").glob("part-*"))) == 1
    assert files_now(place) == [f"{KEY}/{i}" for i in range(2)]
    fake_engine("instant")
    place.write(KEY, range(2, 5), file="b")
    assert place.states("2026-01-05T01:00") == {"hour=00": "done"}
    assert files_now(place) == [f"{KEY}/{i}" for i in range(5)]


def test_an_output_belongs_to_one_schedule(place: Place) -> None:
    place.write(KEY)
    place.call("2026-01-05T01:00")
    place.schedule(name="another")
    with pytest.raises(JobError, match=r"belongs to schedule 'hourly' .* not to 'another'"):
        place.call("2026-01-05T01:00")


def test_partitions_that_share_an_output_after_a_year_are_found(place: Place) -> None:
    place.schedule(output="out/{{ month }}-{{ day }}/{{ hour }}")
    place.write(KEY)
    place.call("2026-01-05T01:00")
    (result,) = place.call("2027-01-05T01:00", first="2027-01-05T00:00").values()
    assert result.state == "failed"
    assert "holds the partition of 2026-01-05T00:00:00+00:00" in result.reason


def test_too_many_failed_rows_are_said_and_the_partition_is_done(place: Place) -> None:
    place.write(KEY).write_text('{"id": "a", "question": "?", "answer": 1}\n{"id": "b", "answer": 1}\n')
    (result,) = place.call("2026-01-05T01:00").values()
    assert result.state == "over limit"
    assert place.states("2026-01-05T01:00") == {"hour=00": "done"}
