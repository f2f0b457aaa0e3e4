"""The state of a job, read from its output alone."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import os
import socket
import time
from pathlib import Path

import pytest

from jobs import cli
from jobs.commands.exit_codes import DONE
from jobs.job_file import STORED_NAME
from jobs.status import read_status, status_lines
from jobs.watch import watch
from pipeline.errors import OutputError
from pipeline.leases import Leases
from pipeline.manifest import busy_seconds
from pipeline.sink import write_shard
from pipeline.workplan import PlanFacts
from schemas.manifest import ShardEntry
from tests.pipeline.example_output import contents, plan_example, result_rows, run_example

ENTRY = ShardEntry(
    shard=0, file="part", rows=1, ok=1, failed=0, failed_reasons={}, prompt_tokens=0, completion_tokens=0,
    scored_tokens=0, started_at="2026-01-31T12:00:00.000+00:00", seconds=10.0, job_fingerprint="job", engine={},
)  # fmt: skip


def _at(minute: int, second: int, seconds: float) -> ShardEntry:
    started_at = f"2026-01-31T12:{minute:02}:{second:02}.000+00:00"
    return dataclasses.replace(ENTRY, started_at=started_at, seconds=seconds)


@pytest.mark.parametrize(
    ("entries", "seconds"),
    [
        ([], 0),
        ([_at(0, 0, 10)], 10),
        ([_at(0, 0, 10), _at(0, 5, 10)], 15),
        ([_at(0, 0, 30), _at(0, 5, 10)], 30),
        ([_at(5, 0, 10), _at(0, 0, 10)], 20),
    ],
    ids=["none", "one", "overlapping", "nested", "pause"],
)
def test_pauses_do_not_count_and_overlaps_count_once(entries: list[ShardEntry], seconds: float) -> None:
    assert busy_seconds(entries) == pytest.approx(seconds)


def _run_some(tmp_path: Path, output: str, shards: int, **changes: object) -> None:
    plan = plan_example(tmp_path, output)
    facts = PlanFacts.of(plan)
    from pipeline.workplan import work_items

    for item in work_items(plan)[:shards]:
        write_shard(output, facts, item, result_rows(item, facts, **changes))


def test_an_unfinished_job(tmp_path: Path) -> None:
    output = str(tmp_path / "out")
    _run_some(tmp_path, output, 2, failed=frozenset({3, 14}))
    (tmp_path / "out" / STORED_NAME).write_text("{}")
    before = contents(tmp_path / "out")
    status = read_status(output)
    assert contents(tmp_path / "out") == before
    assert (status.records_done, status.done.failed, status.is_finished) == (20, 2, False)
    lines = status_lines(dataclasses.replace(status, done=dataclasses.replace(status.done, busy_seconds=10.0)))
    assert lines == [
        ("job", "example (generate), not finished"),
        ("output", output),
        ("shards", "2 of 3 done"),
        ("rows", "20 of 25 done: 18 ok, 2 failed (10.00%)"),
        ("", "2 prompt"),
        ("tokens", "60 of prompts, 36 generated"),
        ("rate", "2.0 rows and 4 tokens per second over 10 s"),
        ("left", "1 shard, 5 rows, about 2.5 s at this rate"),
        ("resume", f"penstock run {output}/{STORED_NAME}"),
    ]


def test_who_is_computing_what(tmp_path: Path) -> None:
    """Of what is done, no more; a lease that its holder could not remove does not count."""
    output = str(tmp_path / "out")
    _run_some(tmp_path, output, 1)
    with contextlib.ExitStack() as stack:
        for shard in (0, 1, 2):
            assert stack.enter_context(Leases(output, "run").taken(shard))
        status = read_status(output)
    assert [lease.shard for lease in status.open_shards] == [1, 2]
    lines = dict(status_lines(status))
    worker = f"{socket.gethostname()}:{os.getpid()}"
    assert lines["open"] == f"{worker}: shards 1, 2, since {status.open_shards[0].taken_at}"
    many = tuple(
        dataclasses.replace(status.open_shards[0], shard=shard, worker=f"host-{shard:02}:1") for shard in range(15)
    )
    lines = status_lines(dataclasses.replace(status, open_shards=many))
    assert sum(text.startswith("host-") for _, text in lines) == 10
    assert ("", "5 more") in lines
    assert "open" not in dict(status_lines(read_status(output)))


def test_a_planned_job_has_no_rate_yet(tmp_path: Path) -> None:
    output = str(tmp_path / "out")
    plan_example(tmp_path, output)
    lines = dict(status_lines(read_status(output)))
    assert lines["shards"] == "0 of 3 done"
    assert lines["rows"] == "0 of 25 done: 0 ok, none failed"
    assert lines["left"] == "3 shards, 25 rows"
    assert lines["resume"] == "run the same job again"
    assert "rate" not in lines


def test_a_job_with_every_shard_is_declared_finished_by_one_more_run(tmp_path: Path) -> None:
    output = str(tmp_path / "out")
    run_example(output, plan_example(tmp_path, output))
    assert dict(status_lines(read_status(output)))["left"] == "to declare the job finished"


def test_a_finished_job(tmp_path: Path) -> None:
    output = str(tmp_path / "out")
    run_example(output, plan_example(tmp_path, output), samples=2).finalise()
    lines = dict(status_lines(read_status(output)))
    assert lines["job"] == "example (generate), finished"
    assert lines["rows"] == "25 of 25 done: 25 ok, none failed"
    assert not {"left", "resume"} & lines.keys()


def test_what_is_no_output_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="is not the output of a job"):
        read_status(str(tmp_path))


def test_the_same_for_programs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = str(tmp_path / "out")
    _run_some(tmp_path, output, 2, failed=frozenset({3, 14}))
    assert cli.main(["status", output, "--json"]) == DONE
    said = json.loads(capsys.readouterr().out)
    assert said["shards"] == {"done": 2, "total": 3}
    assert said["records"] == {"done": 20, "ok": 18, "failed": 2, "total": 25}
    assert said["failed_reasons"] == {"prompt": 2}
    assert said["tokens"] == {"prompt": 60, "generated": 36, "scored": 0}
    assert said["is_finished"] is False


class _Screen(io.StringIO):
    def __init__(self, terminal: bool) -> None:
        super().__init__()
        self._terminal = terminal

    def isatty(self) -> bool:
        return self._terminal


@pytest.mark.parametrize("terminal", [True, False])
def test_watching_until_it_is_finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, terminal: bool) -> None:
    output = str(tmp_path / "out")
    plan = plan_example(tmp_path, output)
    steps = iter([lambda: None, lambda: _run_some(tmp_path, output, 2), lambda: run_example(output, plan).finalise()])
    monkeypatch.setattr(time, "sleep", lambda _: next(steps)())
    screen = _Screen(terminal)
    watch(output, 5.0, screen)
    said = screen.getvalue()
    if terminal:
        assert said.count("job      example") == 4
        assert said.count("\x1b[J") == 3
    else:
        first, second, *last = said.splitlines()
        assert first == "example: 0 of 3 shards, 0 of 25 rows done, 0 failed"
        assert second == "example: 2 of 3 shards, 20 of 25 rows done, 0 failed"
        assert last[0] == "job      example (generate), finished"
