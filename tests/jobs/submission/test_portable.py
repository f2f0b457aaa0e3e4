"""The portable path for real: a job server in a process of its own, workers in others, and the whole command."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from jobs import cli, launch
from jobs.commands import exit_codes
from jobs.job_file import load
from jobs.silence import WorkersSilent
from jobs.spec import Job
from jobs.status import read_status, status_lines
from jobs.submission import worker
from jobs.submission.record import read_submission
from jobs.submission.submit import submit
from pipeline.errors import RunFailed
from tests.jobs import running

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def job_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with running.job_server(tmp_path_factory.mktemp("server")) as endpoint:
        yield endpoint


@pytest.fixture(scope="module")
def worker_program(tmp_path_factory: pytest.TempPathFactory) -> str:
    """`penstock-worker` of this tree, whatever is installed; it says in a file which processes it was."""
    path = tmp_path_factory.mktemp("bin") / "penstock-worker"
    path.write_text(f'#!/bin/sh\necho $$ >> {path}.pids\nexec {sys.executable} -m jobs.submission.worker "$@"\n')
    path.chmod(0o755)
    return str(path)


@pytest.fixture
def worker_pool(worker_program: str) -> Iterator[str]:
    """Beam's pool of workers, in a process of its own, that starts the worker program; where it listens."""
    command = [sys.executable, "-m", "apache_beam.runners.worker.worker_pool_main", "--service_port=0"]
    pool = subprocess.Popen(
        [*command, f"--container_executable={worker_program}"], cwd=ROOT, stderr=subprocess.PIPE, text=True
    )
    try:
        assert pool.stderr is not None
        line = next(line for line in pool.stderr if "Started worker pool" in line)
        yield next(word for word in line.split() if word.startswith("localhost:"))
    finally:
        pool.send_signal(signal.SIGINT)
        pool.communicate(timeout=60)


def _run(job: Job, engine: str = "instant") -> launch.Outcome:
    outcome = submit(job, engine_factory=f"tests.fake_engine:{engine}")
    assert isinstance(outcome, launch.Outcome)
    return outcome


def test_a_job_is_submitted_cancelled_from_its_output_and_goes_on_in_a_pool_of_workers(
    write_job: Callable[..., str],
    tmp_path: Path,
    job_server: str,
    worker_program: str,
    worker_pool: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path, output = write_job(), tmp_path / "out"
    whole = launch.run(load(path, ["output.path=whole"]), engine_factory="tests.fake_engine:instant")
    process = ("--runner", "portable", "--job-endpoint", job_server, "--environment", "PROCESS")
    process += ("--set", f"runner.portable.process_command={worker_program}", "--set", "output.shard_rows=5")

    slow = running.command("crawling", "submit", path, *process, "--detach", "--set", "engine.slots=1")
    said, logged = slow.communicate(timeout=120)
    assert slow.returncode == exit_codes.DONE, logged
    assert f"penstock cancel {output}" in said
    assert "local paths; every worker must find the same files" in logged
    submitted = json.loads((output / "_submitted.json").read_text())
    assert (submitted["runner"], submitted["endpoint"]) == ("portable", job_server)
    assert submitted["job_id"] in said
    deadline = time.monotonic() + 120
    while not list(output.glob("part-*")):
        assert time.monotonic() < deadline
        time.sleep(0.05)

    assert cli.main(["cancel", str(output)]) == exit_codes.DONE
    said = capsys.readouterr().out
    assert "stop within 15 seconds" in said
    assert f"job {submitted['job_id']} at {job_server}: told to cancel" in said
    lines = dict(status_lines(read_status(str(output))))
    assert submitted["job_id"] in lines["runner"]
    assert lines["stopped"].startswith("cancelled by ")
    assert lines["resume"] == f"penstock submit {output}/_job.json"
    (process_id,) = [int(pid) for pid in Path(f"{worker_program}.pids").read_text().split()]
    while _is_alive(process_id):  # the shard that was open is given up, and the runner ends the worker
        assert time.monotonic() < deadline
        time.sleep(0.05)
    done = {file.name for file in output.glob("part-*")}
    assert 0 < len(done) < 20

    portable = {"job_endpoint": job_server, "environment": "EXTERNAL", "service_address": worker_pool}
    outcome = _run(load(str(output / "_job.json"), [f"runner.portable={json.dumps(portable)}"]))
    assert (outcome.summary.ok, outcome.summary.failed, outcome.this_run.shards) == (98, 2, 20 - len(done))
    assert running.rows(output) == running.rows(tmp_path / "whole")
    assert whole.summary.ok == 98
    assert len(set(Path(f"{worker_program}.pids").read_text().split())) == 2
    lines = dict(status_lines(read_status(str(output))))
    assert "stopped" not in lines
    assert cli.main(["cancel", str(output)]) == exit_codes.REFUSED
    assert "is finished: there is nothing to cancel" in capsys.readouterr().err


def test_a_worker_that_is_killed_ends_the_wait_with_a_reason_and_the_rest_is_computed_to_the_same_bytes(
    write_job: Callable[..., str], tmp_path: Path, job_server: str, worker_program: str
) -> None:
    path, output = write_job(), tmp_path / "out"
    shards = ["output.shard_rows=5", "engine.slots=1"]
    launch.run(load(path, [*shards, "output.path=whole"]), engine_factory="tests.fake_engine:instant")
    dies_at_once = tmp_path / "dies-at-once"
    dies_at_once.write_text("#!/bin/sh\nkill -9 $$\n")
    dies_at_once.chmod(0o755)

    def job(program: object, minutes: float = 5) -> Job:
        portable = {"job_endpoint": job_server, "environment": "PROCESS", "process_command": str(program)}
        portable |= {"silence_minutes": minutes}
        return load(path, [*shards, "runner.name=portable", f"runner.portable={json.dumps(portable)}"])

    # Before it has called back: Beam's job server waits for it for ever.
    with pytest.raises(WorkersSilent, match=r"no worker has shown a sign of life at .*; penstock cancel .*out frees"):
        _run(job(dies_at_once, minutes=0.01))
    assert cli.main(["cancel", str(output)]) == exit_codes.DONE

    def kill_after_the_first_shard() -> None:
        while not list(output.glob("part-*")):
            time.sleep(0.02)
        os.kill(int(Path(f"{worker_program}.pids").read_text().split()[-1]), signal.SIGKILL)

    killer = threading.Thread(target=kill_after_the_first_shard, daemon=True)
    killer.start()
    with pytest.raises(
        RunFailed, match=r"^a worker process ended without a word: it was killed.*\nfinished shards stay"
    ):
        _run(job(worker_program), "crawling")
    killer.join()
    done = len(list(output.glob("part-*")))
    assert 0 < done < 20

    outcome = _run(load(path, [*shards]))
    assert outcome.this_run.shards == 20 - done
    assert _parts(output) == _parts(tmp_path / "whole")


def _parts(output: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in output.glob("part-*")}


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_workers_in_the_submitting_process_and_a_failure_in_their_own_words(
    write_job: Callable[..., str], tmp_path: Path, job_server: str
) -> None:
    job = load(write_job(), ["runner.name=portable", f"runner.portable.job_endpoint={job_server}"])
    with pytest.raises(
        RunFailed, match=r"^a shard failed: .*the device was lost; -v shows where\nfinished shards stay"
    ):
        _run(job, "failing")
    assert _run(job).summary.ok == 98


def test_beams_job_server_in_this_process(write_job: Callable[..., str]) -> None:
    job = load(write_job(), ["runner.name=portable", "runner.portable.job_endpoint=embed"])
    assert _run(job).this_run.shards == 5
    assert _run(job).this_run.shards == 0  # a finished job asks no runner
    record = read_submission(job.output.path)
    assert record is not None
    assert record.endpoint is None  # it ended with the submission


def test_the_worker_program_by_hand_says_who_starts_it(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match=r"is started by a runner \(environment: PROCESS\), not by hand"):
        worker.main([])
