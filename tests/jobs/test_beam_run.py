"""What is shown of a run, and what is said when it breaks off."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from jobs import worker_deaths
from jobs.beam_run import counter, in_thread, reason
from jobs.progress import Counts
from pipeline import activity
from pipeline.errors import OutputError, RunFailed
from pipeline.manifest import Manifest
from pipeline.sink import write_shard
from pipeline.workplan import PlanFacts, work_items
from tests.pipeline.example_output import plan_example, result_rows

TEXT_OF_A_WORKER = """\
Traceback (most recent call last):
  File "pipeline/sink.py", line 53, in write_shard
pipeline.errors.InputError: a.jsonl has changed

During handling of the above exception, another exception occurred:

Traceback (most recent call last):
  File "pipeline/shard.py", line 60, in rows
{last} [while running 'RunShard']
"""


@pytest.fixture
def manifest(tmp_path: Path) -> Manifest:
    """Two of three shards are done, with one failed row."""
    output = str(tmp_path / "out")
    plan = plan_example(tmp_path, output)
    facts = PlanFacts.of(plan)
    for item in work_items(plan)[:2]:
        write_shard(output, facts, item, result_rows(item, facts, failed=frozenset({3})))
    return Manifest(output, plan)


def test_rows_count_as_they_get_ready_on_top_of_earlier_runs(manifest: Manifest) -> None:
    activity.reset()
    count = counter(manifest, done_before=20)
    for status in ("ok", "failed", "ok"):
        activity.count([{"status": status, "prompt_token_count": 3, "completion_token_count": 5}])
    assert count() == Counts(done=23, failed=2, tokens=15)
    activity.reset()


def test_shards_count_where_the_rows_are_made_in_other_processes(manifest: Manifest) -> None:
    activity.reset()
    assert counter(manifest, done_before=0)() == Counts(done=20, failed=1, tokens=38)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OutputError("the disk is full"), "the disk is full"),
        (
            RuntimeError(TEXT_OF_A_WORKER.format(last="pipeline.errors.OutputError: the disk is full")),
            "the disk is full",
        ),
        (
            RuntimeError(TEXT_OF_A_WORKER.format(last="RuntimeError: the device was lost")),
            "a shard failed: RuntimeError: the device was lost; -v shows where",
        ),
        (
            RuntimeError("the device was lost [while running 'RunShard']"),
            "a shard failed: the device was lost; -v shows where",
        ),
        (
            RuntimeError("Traceback ...\nRuntimeError: Channel closed prematurely."),
            "a worker process ended without a word: it was killed, or its machine ran out of memory (the kernel's log "
            "says so: dmesg)",
        ),
        (ValueError(), "a shard failed: ValueError; -v shows where"),
    ],
)
def test_what_our_own_code_said_is_found_in_what_runners_hand_over(error: Exception, said: str) -> None:
    assert reason(error) == said


def worker_that_fails() -> None:
    """As Beam has one: in a thread that only raises."""

    def run() -> None:
        raise RuntimeError("Worker subprocess exited with return code 137")

    threading.Thread(target=run, name="run_worker").start()


def test_a_worker_whose_death_the_runner_does_not_notice_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_deaths, "NOTICE_SECONDS", 0.01)
    over = threading.Event()

    def waits_for_its_next_answer() -> None:
        worker_that_fails()
        over.wait(60)

    with pytest.raises(RunFailed, match="a worker process ended without a word"):
        in_thread(waits_for_its_next_answer)
    over.set()


def test_a_worker_that_fails_at_the_end_of_a_run_spoils_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_deaths, "NOTICE_SECONDS", 60.0)
    in_thread(worker_that_fails)


def test_other_threads_fail_as_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    heard: list[str] = []
    monkeypatch.setattr(threading, "excepthook", lambda failed: heard.append(str(failed.exc_value)))

    def fails() -> None:
        raise ValueError("its own affair")

    def run() -> None:
        other = threading.Thread(target=fails)
        other.start()
        other.join()

    in_thread(run)
    assert heard == ["its own affair"]
