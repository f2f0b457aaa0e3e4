"""Days on gs:// and s3://, one request in ten failing, two callers at once: every partition is scored, and once."""

from __future__ import annotations

import datetime
import itertools
import json
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs import launch
from jobs.scheduling.calling import run_call
from jobs.scheduling.run_due import window
from jobs.scheduling.state import current_files
from pipeline import storage
from schemas.manifest import SUCCESS_NAME
from schemas.scheduling import Attempt
from tests.jobs.scheduling import without_beam
from tests.jobs.scheduling.conftest import Place
from tests.stores.faults import KINDS, Faults
from tests.stores.serving import BUCKET, Store, reached

DAYS = [f"dt=2026-01-{day:02}" for day in range(5, 12)]
LATE, MISSED, FAILED = DAYS[1:4]
WEEK = datetime.datetime(2026, 1, 12, 1, tzinfo=datetime.UTC)


class StoredPlace(Place):
    """A schedule whose input and output are in a bucket; the job and the checkpoint are files here."""

    def __init__(self, directory: Path, checkpoint: Path, store: Store) -> None:
        self.store = store
        self.base = f"{store.scheme}://{BUCKET}"
        super().__init__(directory, checkpoint)

    def schedule(self, **changes: Any) -> Any:
        places = {"input": f"{self.base}/in/dt={{{{ ds }}}}/*.jsonl", "output": f"{self.base}/out/dt={{{{ ds }}}}"}
        return super().schedule(cron="0 0 * * *", catch_up="8d", **places, **changes)

    def bring(self, key: str, rows: Iterable[int] | None, file: str = "a") -> None:
        """A file of questions, or with None one that is broken."""
        lines = [{"id": f"{key}/{row}", "question": f"what is {row}?", "answer": row} for row in rows or ()]
        text = "{}\n" if rows is None else "".join(json.dumps(line) + "\n" for line in lines)
        self.store.objects.put(BUCKET, f"in/{key}/{file}.jsonl", text.encode(), if_absent=False)

    def both(self) -> list[dict[str, int]]:
        """Two calls at once: the shards that each computed, by partition."""

        def call(_: int) -> dict[str, int]:
            results = run_call(self.scheduled, WEEK, window(self.scheduled, WEEK), (), lambda result: None)
            return {result.partition.key: result.shards_computed for result in results}

        with ThreadPoolExecutor(2) as callers:
            return list(callers.map(call, range(2)))

    def stored(self, prefix: str, suffix: str) -> list[str]:
        return [f.key for f in self.store.objects.list(BUCKET, prefix) if f.key.endswith(suffix)]

    def rows_now(self) -> list[str]:
        ids: list[str] = []
        for url in current_files(self.scheduled, window(self.scheduled, WEEK)):
            ids += pq.read_table(pa.BufferReader(storage.read_bytes(url)))["record_id"].to_pylist()
        return sorted(ids)

    def attempts(self, key: str) -> list[Attempt]:
        found = self.stored(f"out/_attempts/{key}/", ".json")
        return [Attempt.from_json(self.store.objects.get(BUCKET, name)[1]) for name in sorted(found)]


@pytest.fixture(params=[pytest.param("gcs", marks=pytest.mark.slow), "s3"])
def stored_place(
    request: pytest.FixtureRequest,
    tmp_path: Path,
    checkpoint: Path,
    fake_engine: Callable[[str], None],
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[StoredPlace]:
    together = threading.Barrier(2)
    begun = itertools.count()

    def compute(*arguments: Any) -> None:
        """The first of each caller waits for that of the other, so that they do work at once."""
        if next(begun) < 2:
            together.wait(timeout=60)
        without_beam.compute(*arguments)

    monkeypatch.setattr(launch, "_compute", compute)
    with reached(request.param, tmp_path / "store", Faults(rate=0.1, seed=3, slow_seconds=0.02)) as store:
        yield StoredPlace(tmp_path, checkpoint, store)


@pytest.mark.parametrize("days", [4, pytest.param(7, marks=pytest.mark.slow)])
def test_days_on_a_failing_store_with_late_data_a_missed_day_a_failed_day_and_two_callers(
    stored_place: StoredPlace, days: int
) -> None:
    place, dates = stored_place, DAYS[:days]
    place.schedule(retries={"limit": 0}, end=f"2026-01-{5 + days:02}")
    for day in dates:
        if day != MISSED:
            place.bring(day, None if day == FAILED else range(2))
    good = [day for day in dates if day not in (MISSED, FAILED)]
    ours, theirs = place.both()
    assert {day: ours[day] + theirs[day] for day in dates} == {day: day in good for day in dates}
    assert min(sum(ours.values()), sum(theirs.values())) > 0

    place.bring(MISSED, range(2))
    place.bring(FAILED, range(2))
    place.bring(LATE, [2], file="late")
    ours, theirs = place.both()
    new = {MISSED: 1, FAILED: 1, LATE: 1}
    assert {day: ours[day] + theirs[day] for day in dates} == {day: new.get(day, 0) for day in dates}

    everything = sorted([f"{day}/{row}" for day in dates for row in range(2)] + [f"{LATE}/2"])
    assert place.rows_now() == everything
    assert sorted(place.stored("out/dt=", f"/{SUCCESS_NAME}")) == sorted(
        [f"out/{day}/{SUCCESS_NAME}" for day in dates] + [f"out/{LATE}/late-0002/{SUCCESS_NAME}"]
    )
    written = [key for _, key in place.store.objects.puts if "/part-" in key]
    assert len(written) == len(set(written)) == len(dates) + 1  # each result file once
    tried = {day: [(attempt.state, attempt.shards_computed) for attempt in place.attempts(day)] for day in dates}
    assert tried == {
        **{day: [("done", 1)] for day in dates},
        FAILED: [("failed", 0), ("done", 1)],
        LATE: [("done", 1), ("done", 1)],
    }
    assert place.stored("out/_attempts/", "00000.json") == []  # every lease was let go
    assert sum(place.store.faults.seen[kind] > 0 for kind in KINDS) >= 5


@pytest.mark.slow
def test_only_new_rows_on_a_failing_store(stored_place: StoredPlace, monkeypatch: pytest.MonkeyPatch) -> None:
    """One partition at a time, over both callers."""
    monkeypatch.setattr(launch, "_compute", without_beam.compute)
    place = stored_place
    place.schedule(only_new_rows=True, start="2026-01-09")
    for day, rows in zip(DAYS[-3:], ([0, 1, 2], [2, 3], [0, 3, 4]), strict=True):
        lines = [{"id": row, "question": f"what is {row}?", "answer": row} for row in rows]
        text = "".join(json.dumps(line) + "\n" for line in lines)
        place.store.objects.put(BUCKET, f"in/{day}/a.jsonl", text.encode(), if_absent=False)
    place.both()
    assert place.rows_now() == ["0", "1", "2", "3", "4"]
