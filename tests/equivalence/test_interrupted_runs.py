"""However a job is killed, repeated or run twice at once: the rows of an undisturbed run, none missing or doubled."""

from __future__ import annotations

import random
import time
from pathlib import Path
from typing import Any

import pytest

from schemas.manifest import SUCCESS_NAME, SUMMARY_NAME
from tests import fake_job
from tests.equivalence import processes
from tests.pipeline import tiny_tokenizers

ROWS = 200
ASKED = {
    "generate": fake_job.settings(id="id", keep_columns=["answer"], n=2, stop=["e"], shard_rows=20),
    "score": fake_job.score_settings(continuations=[" {{ answer }}", " no"], shard_rows=20),
}
THREADS = ("--direct_running_mode=multi_threading", "--direct_num_workers=2")


@pytest.fixture(scope="module", params=["generate", pytest.param("score", marks=pytest.mark.slow)])
def job(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    rows = [*fake_job.questions(ROWS), '{"id": "cut in half', {"id": "no question"}]
    source = fake_job.write_jsonl(tmp_path_factory.mktemp("in") / "a.jsonl", rows)
    checkpoint = tiny_tokenizers.save_byte_level(tmp_path_factory.mktemp("checkpoint"))
    return {
        "source": source,
        "checkpoint": checkpoint,
        "asked": ASKED[request.param],
        "flags": (*fake_job.FN_API, *THREADS),
    }


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, job: dict[str, Any]) -> list[dict[str, Any]]:
    output = tmp_path_factory.mktemp("out")
    fake_job.run(output=output, **job)
    rows = fake_job.results(output)
    assert [row["status"] for row in rows].count("failed") == 2
    assert len(rows) == len({(row["source_row"], row["sample_index"]) for row in rows}) >= ROWS + 2
    return rows


@pytest.fixture(scope="module")
def seconds(tmp_path_factory: pytest.TempPathFactory, job: dict[str, Any]) -> float:
    """How long a run takes that nobody kills."""
    times = []
    for _ in range(2):  # the first also starts the server that processes are forked from
        started = time.monotonic()
        processes.start(**slow(job, tmp_path_factory.mktemp("out"))).join()
        times.append(time.monotonic() - started)
    return min(times)


def slow(job: dict[str, Any], output: Path) -> dict[str, Any]:
    return {**job, "output": output, "engine": "tests.fake_engine:slow", "slots": 4}


def finished(output: Path) -> list[dict[str, Any]]:
    """The rows of a job that is declared finished and has left nothing lying about."""
    names = {path.name for path in output.rglob("*")}
    assert {SUCCESS_NAME, SUMMARY_NAME} <= names
    assert not [name for name in names if name.startswith(".")]
    return fake_job.results(output)


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_killed_at_any_moment_and_run_again(tmp_path, job, undisturbed, seconds, seed: int) -> None:
    moments = random.Random(seed)
    lives = [moments.uniform(0.1, 1) * seconds for _ in range(5)]
    was_killed = [processes.kill_after(processes.start(**slow(job, tmp_path)), life) for life in lives]
    assert any(was_killed)
    fake_job.run(output=tmp_path, **job)
    assert finished(tmp_path) == undisturbed


def parts(output: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in output.glob("part-*")}


def test_a_disk_that_is_full_fails_the_run_and_the_next_one_finishes(tmp_path, job, undisturbed) -> None:
    """Wherever it is that it was full: in a result file, in an entry, in the plan."""
    fake_job.run(output=tmp_path / "whole", **job)
    whole = parts(tmp_path / "whole")
    sizes = [len(data) for data in whole.values()]
    for file_bytes in (max(sizes) - 1, min(sizes) // 2, 100):
        output = tmp_path / str(file_bytes)
        run = processes.start(file_bytes=file_bytes, **slow(job, output))
        run.join()
        assert run.exitcode == 1
        assert parts(output).items() <= whole.items()
        assert not (output / SUCCESS_NAME).exists()
        fake_job.run(output=output, **job)
        assert parts(output) == whole
        assert finished(output) == undisturbed


def test_two_runs_at_once(tmp_path, job, undisturbed) -> None:
    runs = [processes.start(**slow(job, tmp_path)) for _ in range(2)]
    for run in runs:
        run.join()
    assert [run.exitcode for run in runs] == [0, 0]
    assert finished(tmp_path) == undisturbed


def test_one_of_two_runs_at_once_is_killed(tmp_path, job, undisturbed) -> None:
    survivor, victim = (processes.start(**slow(job, tmp_path)) for _ in range(2))
    while not parts(tmp_path):
        assert survivor.exitcode is None
        time.sleep(0.005)
    assert processes.kill_after(victim, 0)
    survivor.join()
    assert survivor.exitcode == 0
    fake_job.run(output=tmp_path, **job)  # also clears away what the victim was writing
    assert finished(tmp_path) == undisturbed


@pytest.mark.parametrize(
    ("slots", "workers"),
    [(1, 4), (64, 1), *(pytest.param(*case, marks=pytest.mark.slow) for case in ((1, 1), (64, 4)))],
)
def test_threads_and_slots_change_nothing(tmp_path, job, undisturbed, workers: int, slots: int) -> None:
    flags = (*fake_job.FN_API, "--direct_running_mode=multi_threading", f"--direct_num_workers={workers}")
    fake_job.run(**{**slow(job, tmp_path), "flags": flags, "slots": slots})
    assert finished(tmp_path) == undisturbed


def test_a_finished_job_is_left_as_it_is(tmp_path, job) -> None:
    fake_job.run(output=tmp_path, **job)
    before = {path: (path.stat().st_mtime_ns, path.stat().st_ino) for path in tmp_path.rglob("*") if path.is_file()}
    fake_job.run(output=tmp_path, engine="tests.fake_engine:failing", **job)
    after = {path: (path.stat().st_mtime_ns, path.stat().st_ino) for path in tmp_path.rglob("*") if path.is_file()}
    assert after == before
