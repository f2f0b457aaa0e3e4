"""A schedule on disk, hourly, with a fake engine: `write_hour` brings data, `call` is penstock run-due."""

from __future__ import annotations

import datetime
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml

from jobs import launch
from jobs.scheduling.calling import run_call
from jobs.scheduling.partition_run import Result
from jobs.scheduling.run_due import window
from jobs.scheduling.schedule_file import Scheduled, load
from tests.jobs.scheduling import without_beam

JOB = """\
name: scores
task: generate
model: {{checkpoint: {checkpoint}}}
input: {{id: id}}
prompt: {{template: "Q: {{{{ question }}}}\\nA:"}}
sampling: {{max_tokens: 4, seed: 7}}
output: {{keep_columns: [answer], shard_rows: 2}}
"""
SCHEDULE = {
    "name": "hourly", "job": "job.yaml", "cron": "0 * * * *", "timezone": "UTC",
    "input": "in/dt={{ ds }}/hour={{ hour }}/*.jsonl", "output": "out/dt={{ ds }}/hour={{ hour }}",
    "start": "2026-01-05", "retries": {"limit": 1, "backoff": "0s"},
}  # fmt: skip


class Place:
    """A directory with a job, a schedule, its input and its output."""

    def __init__(self, directory: Path, checkpoint: Path) -> None:
        self.directory = directory
        self.out = directory / "out"
        self.results: list[Result] = []
        (directory / "job.yaml").write_text(JOB.format(checkpoint=checkpoint))
        self.schedule()

    def schedule(self, **changes: Any) -> Scheduled:
        """Writes the schedule file and reads it."""
        values = {**SCHEDULE, **changes}
        path = self.directory / "schedule.yaml"
        path.write_text(yaml.safe_dump({key: value for key, value in values.items() if value is not None}))
        self.scheduled = load(str(path))
        return self.scheduled

    def write(self, key: str, rows: Iterable[Any] = range(3), file: str = "a") -> Path:
        """Brings a file of questions, numbered as `rows` says, to the partition `key`."""
        path = self.directory / "in" / key / f"{file}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        rows = [{"id": f"{key}/{row}", "question": f"what is {row}?", "answer": row} for row in rows]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return path

    def call(self, now: str, *, first: str | None = None, stop: str | None = None) -> dict[str, Result]:
        """penstock run-due, at a time; what became of each partition."""
        times = [datetime.datetime.fromisoformat(t).replace(tzinfo=datetime.UTC) if t else None for t in (first, stop)]
        moment = datetime.datetime.fromisoformat(now).replace(tzinfo=datetime.UTC)
        looked_at = window(self.scheduled, moment, *times)
        results = run_call(self.scheduled, moment, looked_at, (), self.results.append)
        return {result.partition.key: result for result in results}

    def states(self, now: str, **between: str) -> dict[str, str]:
        return {key.removeprefix("dt=2026-01-05/"): r.state for key, r in self.call(now, **between).items()}

    def ids(self) -> list[str]:
        """The record ids that a reader of the whole output sees."""
        return sorted(pq.read_table(self.out, columns=["record_id"])["record_id"].to_pylist())


@pytest.fixture
def place_with_beam(tmp_path: Path, checkpoint: Path, fake_engine: Callable[[str], None]) -> Place:
    return Place(tmp_path, checkpoint)


@pytest.fixture
def place(place_with_beam: Place, monkeypatch: pytest.MonkeyPatch) -> Place:
    monkeypatch.setattr(launch, "_compute", without_beam.compute)
    return place_with_beam
