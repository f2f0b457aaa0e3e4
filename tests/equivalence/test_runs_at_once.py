"""Two runs of a job at the same time share its shards, and one that dies keeps the other from nothing."""

from __future__ import annotations

import dataclasses
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from pipeline import leases, storage
from pipeline.leases import holders
from schemas.lease import LEASES_NAME, Lease, lease_name
from schemas.manifest import SUCCESS_NAME
from tests import fake_job
from tests.equivalence import processes
from tests.pipeline import tiny_tokenizers

ROWS, SHARDS = 120, 12
THREADS = ("--direct_running_mode=multi_threading", "--direct_num_workers=2")


@pytest.fixture
def job(tmp_path: Path) -> dict[str, Any]:
    (tmp_path / "checkpoint").mkdir()
    return {
        "source": fake_job.write_jsonl(tmp_path / "in" / "a.jsonl", fake_job.questions(ROWS)),
        "checkpoint": tiny_tokenizers.save_byte_level(tmp_path / "checkpoint"),
        "asked": fake_job.settings(id="id", shard_rows=ROWS // SHARDS, max_tokens=8),
        "flags": (*fake_job.FN_API, *THREADS),
        "engine": "tests.fake_engine:noting",
        "slots": 2,
    }


def answered(job: dict[str, Any]) -> list[Counter[str]]:
    """How often each row was computed, by process."""
    return [Counter(notes.read_text().split()) for notes in Path(job["checkpoint"]).glob("answered-*")]


@pytest.fixture
def expected(tmp_path: Path, job: dict[str, Any]) -> list[dict[str, Any]]:
    fake_job.run(output=tmp_path / "alone", **{**job, "engine": "tests.fake_engine:instant"})
    return fake_job.results(tmp_path / "alone")


def test_two_runs_at_once_compute_each_shard_once(tmp_path: Path, job, expected) -> None:
    output = tmp_path / "out"
    together = {**job, "engine": "tests.fake_engine:noting_together"}
    runs = [processes.start(output=output, **together) for _ in range(2)]
    for run in runs:
        run.join()
    assert [run.exitcode for run in runs] == [0, 0]
    assert fake_job.results(output) == expected
    each = answered(job)
    assert len(each) == 2
    assert all(each), "both have had something to do"
    assert set(sum(each, Counter()).values()) == {1}
    assert len(sum(each, Counter())) == ROWS
    assert holders(str(output)) == []
    assert (output / SUCCESS_NAME).exists()


def test_what_a_run_elsewhere_was_computing_when_it_died_is_done_last(tmp_path: Path, job, expected, caplog) -> None:
    """Its lease stays, and no process here can tell that its holder is gone, except by waiting."""
    output = tmp_path / "out"
    fake_job.make_plan(job["source"], output, job["asked"])
    dead = Lease(
        shard=0, run="dead", worker="elsewhere:1", process="another boot/1/1/1", nonce="n", renewals=3,
        taken_at="2199-01-31T12:00:00+00:00",
    )  # fmt: skip
    for shard in (0, 1):
        url = storage.join(str(output), LEASES_NAME, lease_name(shard))
        storage.publish_over(url, dataclasses.replace(dead, shard=shard).to_json())
    started = time.monotonic()
    fake_job.run(output=output, lease_seconds=3.0, **job)
    assert time.monotonic() - started >= 3.0
    assert fake_job.results(output) == expected
    assert holders(str(output)) == []
    assert "waiting for shard 0, which is being computed by elsewhere:1" in caplog.text
    made = [path.stat().st_mtime_ns for path in sorted(output.glob("part-*"))]
    assert max(made[2:]) < min(made[:2])


def test_a_run_that_is_killed_does_not_keep_the_next_waiting(tmp_path: Path, job, expected) -> None:
    output = tmp_path / "out"
    victim = processes.start(output=output, **job)
    while not holders(str(output)):
        assert victim.exitcode is None
        time.sleep(0.005)
    assert processes.kill_after(victim, 0.05)
    assert holders(str(output)), "it has left its leases behind"
    started = time.monotonic()
    fake_job.run(output=output, **job)
    assert time.monotonic() - started < leases.LEASE_SECONDS
    assert fake_job.results(output) == expected
    assert holders(str(output)) == []
