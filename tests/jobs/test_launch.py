"""A job from its file to its finished output, with a fake engine under the real Beam pipeline."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from jobs import launch
from jobs.job_file import load
from pipeline.errors import InputError, JobError, OutputError, PlanMismatch
from tests.jobs import running
from tests.pipeline.example_output import contents

ROOT = Path(__file__).parents[2]
FACTORY = "tests.fake_engine:instant"


def test_a_job_runs_and_sums_up(write_job: Callable[..., str], tmp_path: Path) -> None:
    outcome = launch.run(load(write_job()), engine_factory=FACTORY)
    assert (outcome.summary.ok, outcome.summary.failed, outcome.summary.shards) == (98, 2, 5)
    assert outcome.this_run == outcome.summary
    assert not outcome.is_over_limit
    rows = running.rows(tmp_path / "out")
    assert len(rows) == 100
    (row,) = (row for row in rows if row["record_id"] == "q99")
    assert (row["status"], row["prompt"], row["answer"]) == ("ok", "Q: what is 99?\nA:", 99)
    assert [label for label, _ in launch.outcome_lines(outcome)] == [
        "job", "rows", "", "tokens", "this run", "output",
    ]  # fmt: skip


def test_a_finished_job_reruns_without_beam_or_jax_and_changes_no_file(
    write_job: Callable[..., str], tmp_path: Path
) -> None:
    path = write_job()
    launch.run(load(path), engine_factory=FACTORY)
    before = contents(tmp_path / "out")
    again = running.command("failing", "run", path)
    said, logged = again.communicate(timeout=60)
    assert again.returncode == 0, logged
    assert "nothing to do: every shard was there" in said
    assert logged.splitlines()[-1] == "imported:"
    assert contents(tmp_path / "out") == before


def test_an_interrupted_job_says_how_to_go_on_and_goes_on(write_job: Callable[..., str], tmp_path: Path) -> None:
    path = write_job(200)
    whole = launch.run(load(path, ["output.path=whole"]), engine_factory=FACTORY)
    first = running.command("crawling", "run", path, "--set", "output.shard_rows=5", "--set", "engine.slots=1")
    deadline = time.monotonic() + 60
    while not list((tmp_path / "out").glob("part-*")):
        assert time.monotonic() < deadline
        assert first.poll() is None, first.communicate()
        time.sleep(0.01)
    first.send_signal(signal.SIGINT)
    _, logged = first.communicate(timeout=30)
    assert first.returncode == 130
    assert f"interrupted; finished shards stay. To go on:\n  penstock run {path} --set output.shard_rows=5" in logged
    assert "Traceback" not in logged
    done = {name: found for name, found in contents(tmp_path / "out").items() if name.startswith("part-")}
    assert 0 < len(done) < 40

    outcome = launch.run(load(str(tmp_path / "out" / "_job.json")), engine_factory=FACTORY)
    assert (outcome.summary.ok, outcome.summary.failed) == (whole.summary.ok, whole.summary.failed)
    assert outcome.this_run.shards == 40 - len(done)
    assert done.items() <= contents(tmp_path / "out").items()
    assert running.rows(tmp_path / "out") == running.rows(tmp_path / "whole")


def test_the_stored_job_is_the_job(write_job: Callable[..., str], tmp_path: Path) -> None:
    job = load(write_job(), ["sampling.stop=[é, END]", "output.path=here"])
    launch.run(job, engine_factory=FACTORY)
    assert load(str(tmp_path / "here" / "_job.json")) == job


def test_a_job_that_fails_too_many_rows_is_over_its_limit(write_job: Callable[..., str]) -> None:
    path = write_job()
    launch.run(load(path), engine_factory=FACTORY)
    for limit, is_over in (("0.02", False), ("0.019", True), ("0", True), ("1", False)):
        outcome = launch.run(load(path, [f"limits.max_failed_fraction={limit}"]))
        assert outcome.is_over_limit is is_over
        assert any(label == "limit" for label, _ in launch.outcome_lines(outcome)) is is_over


@pytest.mark.parametrize(
    ("overrides", "error", "problem"),
    [
        (
            ["prompt.template='{{ qestion }}'"],
            JobError,
            r"no row has a column qestion; they have answer, id, question",
        ),
        (["prompt.template='{{ question'"], Exception, r"line 1"),
        (["prompt.template=null", "prompt.messages=chat"], JobError, r"no row has a column chat"),
        (["engine.max_length=257"], JobError, r"engine.max_length: 257, the model's context is 256 tokens"),
        (["sampling.stop_token_ids=[512]"], JobError, r"stop_token_ids: 512, the model's vocabulary is 0 to 511"),
        (["input.path=absent.jsonl"], InputError, r"no input file matches .*absent.jsonl"),
        (["output.keep_columns=[anser]"], InputError, r"cannot keep column 'anser'"),
        (["model.checkpoint=absent"], Exception, r"absent"),
    ],
)
def test_a_mistake_is_found_before_the_output_is_bound_to_it(
    write_job: Callable[..., str], tmp_path: Path, overrides: list[str], error: type[Exception], problem: str
) -> None:
    job = load(write_job(), overrides)
    with pytest.raises(error, match=problem):
        launch.run(job, engine_factory=FACTORY)
    assert not (tmp_path / "out").exists() or not os.listdir(tmp_path / "out")


def test_a_column_that_the_template_provides_for_may_be_absent(write_job: Callable[..., str]) -> None:
    job = load(write_job(), ["prompt.template='{{ question }} {{ hint | default(7) }}'"])
    assert launch.run(job, engine_factory=FACTORY).summary.ok == 98


def test_another_job_on_the_same_output_is_refused_field_by_field(write_job: Callable[..., str]) -> None:
    path = write_job()
    launch.run(load(path), engine_factory=FACTORY)
    with pytest.raises(PlanMismatch, match=r"settings.sampling.seed: 7 -> 8"):
        launch.run(load(path, ["sampling.seed=8"]), engine_factory=FACTORY)


def test_an_output_that_cannot_be_written_is_found_before_planning(
    write_job: Callable[..., str], tmp_path: Path
) -> None:
    path = write_job()
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="file"):
        launch.run(load(path, ["output.path=file/out"]), engine_factory=FACTORY)


def test_an_engine_that_fails_is_told_apart_from_a_bad_row(write_job: Callable[..., str], tmp_path: Path) -> None:
    from jobs.beam_run import RunFailed

    with pytest.raises(
        RunFailed, match=r"^a shard failed: .*the device was lost; -v shows where\nfinished shards stay"
    ):
        launch.run(load(write_job()), engine_factory="tests.fake_engine:failing")
    assert not (tmp_path / "out" / "_SUCCESS").exists()


@pytest.mark.parametrize(
    ("overrides", "columns"),
    [
        (["prompt=null", "score.text='{{ question }}'"], {"perplexity"}),
        (["score.continuations=[' {{ answer }}', ' no']"], {"best_index"}),
    ],
)
def test_a_score_job_runs(
    write_job: Callable[..., str], tmp_path: Path, overrides: list[str], columns: set[str]
) -> None:
    text = Path(write_job()).read_text().replace("task: generate", "task: score").replace("sampling:", "#")
    (tmp_path / "job.yaml").write_text(text)
    outcome = launch.run(load(str(tmp_path / "job.yaml"), overrides), engine_factory=FACTORY)
    assert outcome.summary.ok == 98
    table = pq.read_table(tmp_path / "out")
    assert all(table[name].null_count == 2 for name in columns)
