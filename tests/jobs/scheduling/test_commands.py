"""The commands as they are typed: the worked example of docs/scheduling.md, status, serve, and how they end."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from jobs import cli, launch
from jobs.commands import exit_codes
from jobs.document import parse
from jobs.scheduling import serve
from jobs.scheduling.spec import Schedule
from jobs.spec import Job
from pipeline import activity
from tests.jobs.scheduling import without_beam
from tests.jobs.scheduling.conftest import Place

ROOT = Path(__file__).parents[3]
DOCS = (ROOT / "docs" / "scheduling.md").read_text()
KEY = "dt=2026-01-05/hour=00"


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}[^\n]*\n(.*?)```", DOCS, re.DOTALL)


def without_times(text: str) -> str:
    return re.sub(r"\d+(\.\d+)? s\b", "0 s", text)


def test_the_example_of_the_docs_does_what_it_says(
    place: Place, checkpoint: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    directory = place.directory / "example"
    directory.mkdir()
    monkeypatch.chdir(directory)
    job, schedule, *_ = blocks("yaml")
    (directory / "score.yaml").write_text(job.replace("./checkpoint", str(checkpoint)))
    (directory / "daily.yaml").write_text(schedule)
    for day in (1, 2):
        place.write(f"dt=2026-01-0{day}")
    (place.directory / "in").rename(directory / "in")
    sessions = blocks("console")
    assert len(sessions) == 2
    for session in sessions:
        for command, expected in re.findall(r"\$ penstock (.*)\n((?:(?!\$ ).*\n)*)", session):
            assert cli.main(command.split()) == exit_codes.DONE, command
            said = capfd.readouterr().out.replace(f"{directory}/", "")
            assert without_times(said) == without_times(expected), command


def test_other_yaml_of_the_docs_is_valid() -> None:
    _, schedule, *parts = (parse(block, source="docs").values for block in blocks("yaml"))
    assert len(parts) == 2
    for part in parts:
        Schedule.model_validate_json(json.dumps({**schedule, **part}))


def test_status_is_a_table_of_partitions(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    for hour in (0, 2):
        place.write(f"dt=2026-01-05/hour=0{hour}")
    place.call("2026-01-05T01:00")
    place.write(KEY, [7], file="b")
    place.call("2026-01-05T01:00")
    assert cli.main(["schedule", "status", place.scheduled.file, "--now", "2026-01-05T03:10"]) == exit_codes.DONE
    said = capsys.readouterr().out
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in said.splitlines() if line.startswith("│")]
    assert [row[:6] for row in rows if row[0]] == [
        [KEY, "done", "1+2", "4", "0", "2"],
        ["dt=2026-01-05/hour=01", "late", "", "", "", "0"],
        ["dt=2026-01-05/hour=02", "due", "", "", "", "0"],
    ]
    assert "states   1 done, 1 late, 1 due" in said
    assert "next     dt=2026-01-05/hour=03, due at 2026-01-05T04:00+00:00" in said


def test_exit_codes_say_how_it_went(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    def call(hours: int) -> int:
        return cli.main(["run-due", place.scheduled.file, "--now", f"2026-01-05T0{hours}:00"])

    assert call(1) == exit_codes.DONE  # late
    place.write(KEY)
    assert call(1) == exit_codes.DONE
    place.write(KEY, range(2))
    assert call(1) == exit_codes.TOO_MANY_FAILED  # shrank
    place.write("dt=2026-01-05/hour=01").write_text("{}\n")
    assert call(2) == exit_codes.REFUSED
    assert cli.main(["run-due", "absent.yaml"]) == exit_codes.REFUSED
    assert cli.main(["run-due", place.scheduled.file, "--now", "tomorrow"]) == exit_codes.REFUSED
    assert (
        cli.main(["run-due", place.scheduled.file, "--from", "2026-01-06", "--to", "2026-01-05"]) == exit_codes.REFUSED
    )
    said = capsys.readouterr()
    assert "refused" in said.out
    assert "'tomorrow' is no time" in said.err


def test_wait_is_for_delays_that_are_over_soon(place: Place) -> None:
    place.schedule(delay="1s")
    place.write(KEY)
    assert cli.main(["run-due", place.scheduled.file, "--now", "2026-01-05T01:00", "--wait", "2s"]) == exit_codes.DONE
    assert (place.out / KEY / "_SUCCESS").exists()


def test_serve_survives_errors_and_reads_its_file_anew(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    ended = threading.Event()
    looks = iter(range(4))

    def look(schedules: object, most_seconds: float) -> float:
        turn = next(looks)
        if turn == 0:
            Path(place.scheduled.file).write_text("name: [")
        elif turn == 1:
            place.schedule(start="2026-01-05", catch_up="1h", name="another")  # whose output it is not
        elif turn == 3:
            ended.set()
        return 0.0

    monkeypatch.setattr(serve, "_until_next", look)
    serve.serve([place.scheduled.file], said.append, ended=ended)
    assert said[0].startswith("hourly: 0 * * * * (UTC), to ")
    assert any("going on with the schedules as they were" in line for line in said)
    assert any("belongs to schedule 'hourly'" in line for line in said)


def test_it_sleeps_until_the_next_partition_is_due(place: Place) -> None:
    assert 0 < serve._until_next([place.scheduled], 1e9) <= 3600
    assert serve._until_next([place.scheduled], 5.0) <= 5.0
    over = place.schedule(end="2026-01-06")
    assert serve._until_next([over], 77.0) == 77.0


def test_sigterm_ends_a_call_and_the_next_goes_on(place: Place) -> None:
    place.write(KEY, range(100))
    program = (
        "import functools, sys\nfrom jobs import cli, launch\nfrom tests.jobs.scheduling import without_beam\n"
        "launch.run = functools.partial(launch.run, engine_factory='tests.fake_engine:slow')\n"
        "launch._compute = without_beam.compute\nsys.exit(cli.main(sys.argv[1:]))\n"
    )
    command = [sys.executable, "-c", program, "run-due", place.scheduled.file, "--now", "2026-01-05T01:00"]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while not list((place.out / KEY).glob("part-*")) and time.monotonic() < deadline:
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGTERM)
    _, said = process.communicate(timeout=60)
    assert process.returncode == exit_codes.TERMINATED, said
    assert "ended by SIGTERM; finished shards stay" in said
    (attempt,) = (place.out / "_attempts" / KEY).glob("*.json")
    assert '"state": "stopped"' in attempt.read_text()
    finished = len(list((place.out / KEY).glob("part-*")))
    place.schedule(retries={"limit": 0})
    (result,) = place.call("2026-01-05T01:00").values()
    assert (result.state, result.shards_computed) == ("done", 50 - finished)


def test_a_timeout_stops_a_partition(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    place.schedule(timeout="1s", retries={"limit": 0})
    place.write(KEY, range(4))

    def hold_up(job: Job, *rest: Any) -> None:
        while True:
            activity.stop_if_cancelled(job.output.path)
            time.sleep(0.01)

    monkeypatch.setattr(launch, "_compute", hold_up)
    (result,) = place.call("2026-01-05T01:00").values()
    assert (result.state, result.reason) == ("failed", "failed 1 time: stopped after 1s (timeout)")
    monkeypatch.setattr(launch, "_compute", without_beam.compute)
    place.schedule(retries={"limit": 1, "backoff": "0s"})
    assert place.states("2026-01-05T01:00") == {"hour=00": "done"}


def test_partitions_run_at_once_under_beam_and_one_can_be_stopped_alone(
    place_with_beam: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    place, compute = place_with_beam, launch._compute
    place.schedule(concurrency=2, retries={"limit": 0})
    for hour in (0, 1):
        place.write(f"dt=2026-01-05/hour=0{hour}", range(4))

    def one_waits_for_the_other(job: Job, *rest: Any) -> None:
        if job.output.path.endswith(KEY):
            while not (place.out / "dt=2026-01-05/hour=01" / "_SUCCESS").exists():
                time.sleep(0.01)
            activity.cancel(job.output.path)
            activity.stop_if_cancelled(job.output.path)
        else:
            activity.cancel(f"{place.out}/{KEY}")  # of another output
        compute(job, *rest)

    monkeypatch.setattr(launch, "_compute", one_waits_for_the_other)
    assert place.states("2026-01-05T02:00") == {"hour=00": "failed", "hour=01": "done"}
