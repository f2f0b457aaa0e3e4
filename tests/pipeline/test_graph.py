"""The same graph on every runner that a laptop has."""

from __future__ import annotations

import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import fsspec
import pytest
from apache_beam.metrics import MetricsFilter

from pipeline import activity
from pipeline.counters import NAMESPACE, EngineReport
from pipeline.manifest import Manifest
from pipeline.workplan import read_plan
from schemas.manifest import SUCCESS_NAME, SUMMARY_NAME
from tests import fake_job
from tests.fake_engine import FakeEngine
from tests.pipeline import tiny_tokenizers

ROWS = 60
FN_API = "--runner=apache_beam.runners.portability.fn_api_runner.FnApiRunner"
THREADS = ("--direct_running_mode=multi_threading", "--direct_num_workers=2")
BUNDLES = "--runner=BundleBasedDirectRunner"
PORTABLE = ["--runner=PortableRunner", "--job_endpoint=embed", "--environment_type=LOOPBACK"]


MADE: list[FakeEngine] = []


def failing_at_first(checkpoint: str, **asked: Any) -> FakeEngine:
    """A few requests fail for no fault of theirs, so the first attempts of a bundle do."""
    MADE.append(FakeEngine(fail_on=frozenset((5, 40))))
    return MADE[-1]


def silent(checkpoint: str, **asked: Any) -> FakeEngine:
    """Never answers."""
    engine = FakeEngine()
    engine.submit = lambda request: Future()
    return engine


def waiting_for_two_shards(checkpoint: str, **asked: Any) -> FakeEngine:
    return Waiting()


class Waiting(FakeEngine):
    """Answers nobody before it has the requests of two shards."""

    def __init__(self) -> None:
        super().__init__()
        self._held: list[Any] = []
        self._gate = threading.Lock()

    def submit(self, request: Any) -> Future[Any]:
        with self._gate:
            if len(self._held) > fake_job.SETTINGS["shard_rows"]:
                return super().submit(request)
            future: Future[Any] = Future()
            self._held.append((request, future))
            if len(self._held) > fake_job.SETTINGS["shard_rows"]:
                for held in self._held:
                    self._answer(*held)
            return future


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_tokenizers.save_byte_level(tmp_path_factory.mktemp("checkpoint"))


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fake_job.write_jsonl(tmp_path_factory.mktemp("in") / "a.jsonl", [*fake_job.questions(ROWS), "not JSON"])


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory, source: Path, checkpoint: Path) -> list[dict]:
    output = tmp_path_factory.mktemp("out")
    fake_job.run(source, output, checkpoint, flags=[FN_API])
    rows = fake_job.results(output)
    assert len(rows) == ROWS + 1
    return rows


@pytest.mark.parametrize(
    "flags",
    [
        [FN_API, "--direct_running_mode=multi_threading", "--direct_num_workers=1"],
        [FN_API, *THREADS],
        [FN_API, "--direct_running_mode=multi_threading", "--direct_num_workers=4"],
        [FN_API, "--direct_running_mode=multi_processing", "--direct_num_workers=2"],
        [BUNDLES],
        [BUNDLES, "--direct_runner_bundle_repeat=2"],
        PORTABLE,
    ],
    ids=lambda flags: " ".join(flag.split("=")[1].split(".")[-1] for flag in flags),
)
def test_every_runner_gives_the_same_rows(tmp_path, source, checkpoint, expected, flags: list[str]) -> None:
    fake_job.run(source, tmp_path, checkpoint, flags=flags)
    assert fake_job.results(tmp_path) == expected
    assert (tmp_path / SUCCESS_NAME).exists()


def test_a_bundle_that_fails_is_tried_again(tmp_path, source, checkpoint, expected) -> None:
    fake_job.run(source, tmp_path, checkpoint, engine=f"{__name__}:failing_at_first", flags=[BUNDLES])
    assert [engine.failures for engine in MADE] == [2]
    assert fake_job.results(tmp_path) == expected


def test_two_workers_have_two_shards_open(tmp_path, source, checkpoint, expected) -> None:
    """The engine waits for more requests than one shard has."""
    engine = f"{__name__}:waiting_for_two_shards"
    fake_job.run(source, tmp_path, checkpoint, engine=engine, flags=[FN_API, *THREADS])
    assert fake_job.results(tmp_path) == expected


def test_an_engine_that_always_fails_ends_the_run_unfinished(tmp_path, source, checkpoint) -> None:
    with pytest.raises(Exception, match="the device was lost"):
        fake_job.run(source, tmp_path, checkpoint, engine="tests.fake_engine:failing", flags=[FN_API])
    assert not (tmp_path / SUCCESS_NAME).exists()
    assert not (tmp_path / SUMMARY_NAME).exists()
    assert not list(tmp_path.glob("part-*"))


def test_a_runner_can_show_what_has_been_done(tmp_path, source, checkpoint) -> None:
    result = fake_job.run(source, tmp_path, checkpoint, flags=[FN_API, *THREADS])
    found = result.metrics().query(MetricsFilter().with_namespace(NAMESPACE))
    counts = {one.key.metric.name: one.committed for one in found["counters"]}
    entries = Manifest(str(tmp_path), read_plan(str(tmp_path))).entries()
    assert (counts["records_ok"], counts["records_failed"]) == (ROWS, 1)
    assert counts["shards_computed"] == len(entries)
    assert counts["prompt_tokens"] == sum(entry.prompt_tokens for entry in entries) > 0
    assert counts["generated_tokens"] == sum(entry.completion_tokens for entry in entries) > 0
    assert counts["scored_tokens"] == counts["out_of_memory_retries"] == 0
    (seconds,) = (one.committed for one in found["distributions"] if one.key.metric.name == "shard_milliseconds")
    assert seconds.count == len(entries)


def test_what_the_engine_counts_is_reported_once_by_whichever_shard_ends() -> None:
    report = EngineReport()
    assert report.since_last({"decode_steps": 5}) == {"decode_steps": 5}
    assert report.since_last({"decode_steps": 8, "device_seconds": 0.5}) == {"decode_steps": 3, "device_seconds": 0.5}
    assert report.since_last({"decode_steps": 8, "device_seconds": 0.5}) == {"decode_steps": 0, "device_seconds": 0}


def test_a_cancelled_run_ends_at_once(tmp_path, source, checkpoint) -> None:
    with ThreadPoolExecutor(1) as pool:
        run = pool.submit(
            fake_job.run, source, tmp_path, checkpoint, engine=f"{__name__}:silent", flags=[FN_API, *THREADS]
        )
        try:
            while not any(tmp_path.glob(".part-*")):
                time.sleep(0.01)
                assert not run.done()
        finally:
            activity.cancel()
    activity.reset()
    assert "Cancelled" in str(run.exception())
    assert not list(tmp_path.glob(".part-*"))


def test_input_and_output_in_an_object_store(source, checkpoint, expected) -> None:
    fsspec.filesystem("memory").pipe_file("/store/in/a.jsonl", source.read_bytes())
    fake_job.run("memory://store/in/*.jsonl", "memory://store/out", checkpoint)
    rows = fake_job.results("memory://store/out")
    assert [row["text"] for row in rows] == [row["text"] for row in expected]
    assert fsspec.filesystem("memory").exists("/store/out/_SUCCESS")


def test_with_nothing_to_do_the_job_is_declared_finished(tmp_path, source, checkpoint, expected) -> None:
    fake_job.run(source, tmp_path, checkpoint)
    (tmp_path / SUCCESS_NAME).unlink()
    fake_job.run(source, tmp_path, checkpoint, engine="tests.fake_engine:failing")
    assert (tmp_path / SUCCESS_NAME).exists()
    assert fake_job.results(tmp_path) == expected
