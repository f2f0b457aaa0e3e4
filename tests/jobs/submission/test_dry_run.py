"""`penstock submit --dry-run`: what would be sent, in words and as a file; nothing is sent and nothing is written."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from jobs import cli, launch
from jobs.commands import exit_codes
from jobs.job_file import load
from jobs.submission import dry_run
from jobs.submission.submit import submit
from tests.jobs.submission.jobs import DATAFLOW


def test_a_dry_run_sends_and_writes_nothing(
    write_job: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(dry_run, "refuse_unreachable", lambda job: None)  # in place of a bucket; it has its own tests
    settings = DATAFLOW | {"machines": 4, "accelerator": "v6e"}
    overrides = {
        "engine.mesh": "2x2x1",
        "runner.dataflow": json.dumps(settings),
    }
    sets = [word for key, value in overrides.items() for word in ("--set", f"{key}={value}")]
    file = tmp_path / "request.json"
    command = ["submit", write_job(), "--runner", "dataflow", "--dry-run", "--json", str(file)]
    assert cli.main([*command, *sets, "--label=team=search"]) == exit_codes.DONE
    said = capsys.readouterr().out
    assert "to dataflow; nothing is sent" in said
    assert "work     5 shards to do, 100 rows, of 5" in said
    assert "workers  4 x ct6e-standard-4t: v6e 2x2; 16 chips in all" in said
    assert "--build-arg TPU_TYPE=v6e-4 --build-arg TPU_BOUNDS=2,2,1" in said
    assert "flag     --label=team=search" in said
    job = json.loads(file.read_text())
    assert job["environment"]["workerPools"][0]["machineType"] == "ct6e-standard-4t"
    assert not (tmp_path / "out").exists()

    assert cli.main([*command[:-1], "/absent/request.json", *sets]) == exit_codes.REFUSED
    assert "--json: cannot write /absent/request.json: No such file" in capsys.readouterr().err


def test_a_dry_run_of_a_portable_runner_asks_nobody(
    write_job: Callable[..., str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["submit", write_job(), "--dry-run", "--runner", "portable", "--job-endpoint", "nowhere.invalid:1"]
    assert cli.main([*command, "--environment", "PROCESS"]) == exit_codes.DONE
    said = capsys.readouterr().out
    assert "flag     --job_endpoint=nowhere.invalid:1" in said
    assert "note     model.checkpoint, input.path, output.path: local paths" in said
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["--dry-run"], "--dry-run: the local runner is sent nothing"),
        (["--detach"], "--detach: the job would end with this command, because its workers are in this process"),
        (["--environment", "PROCESS"], "--environment: say --runner too"),
        (["--runner", "flink"], "runner.flink.job_server_jar: is missing"),
        (["--runner", "dask"], "Beam's DaskRunner loses data"),
        (["--runner", "portable", "--job-endpoint", "embed", "--detach"], "its workers are in this process"),
    ],
)
def test_what_cannot_be_submitted_is_refused(
    write_job: Callable[..., str],
    tmp_path: Path,
    arguments: list[str],
    problem: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert cli.main(["submit", write_job(), *arguments]) == exit_codes.REFUSED
    assert problem in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_penstock_run_does_not_run_here_what_names_another_runner(
    write_job: Callable[..., str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["run", write_job(), "--set", "runner.name=flink"]) == exit_codes.REFUSED
    assert "runner.name: flink, and penstock run computes in this process" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_submitting_to_the_local_runner_is_running(write_job: Callable[..., str]) -> None:
    outcome = submit(load(write_job()), engine_factory="tests.fake_engine:instant")
    assert isinstance(outcome, launch.Outcome)
    assert outcome.summary.ok == 98


def test_a_job_server_that_does_not_start_is_said(write_job: Callable[..., str], tmp_path: Path) -> None:
    jar = tmp_path / "job-server.jar"
    jar.write_bytes(b"no jar")
    java = tmp_path / "bin" / "java"
    java.parent.mkdir()
    java.write_text("#!/bin/sh\nexit 1\n")
    java.chmod(0o755)
    ended = subprocess.run(  # in a process of its own, for what Beam leaves behind
        [sys.executable, "-m", "jobs.cli", "submit", write_job(), "--runner=flink", f"--flink-job-server-jar={jar}"],
        env={**os.environ, "PATH": f"{java.parent}:{os.environ['PATH']}"},
        cwd=Path(__file__).parents[3],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert ended.returncode == exit_codes.REFUSED
    assert f"{jar} did not start as a job server; java -jar {jar} --help shows why" in ended.stderr
    assert "Traceback" not in ended.stderr
