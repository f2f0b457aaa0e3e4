"""One engine for a process, shared by whoever needs it, replaced when it is lost; and shards published once."""

from __future__ import annotations

import dataclasses
import gc
import json
import pickle
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from apache_beam.pvalue import TaggedOutput

import engine
from engine.errors import DeviceHung, EngineClosed
from pipeline import activity, inference
from pipeline.inference import RunShard, ShardJob, run_shard
from pipeline.leases import Leases
from pipeline.manifest import committed
from pipeline.tokenizer import Tokenizer
from pipeline.workplan import work_items
from schemas.lease import LEASES_NAME
from tests import fake_job
from tests.fake_engine import FakeEngine
from tests.pipeline import tiny_tokenizers

LOADED: list[FakeEngine] = []


def counted(checkpoint: str, **asked: Any) -> FakeEngine:
    """An engine factory that remembers what it made."""
    LOADED.append(FakeEngine())
    return LOADED[-1]


@pytest.fixture(autouse=True)
def _nothing_loaded():
    LOADED.clear()
    yield
    LOADED.clear()


@pytest.fixture
def job(tmp_path: Path) -> ShardJob:
    source = fake_job.write_jsonl(tmp_path / "in" / "a.jsonl", fake_job.questions(20))
    plan = fake_job.make_plan(source, tmp_path / "out", fake_job.settings())
    tiny_tokenizers.save_byte_level(tmp_path)
    return ShardJob.of(str(tmp_path / "out"), plan, str(tmp_path), engine_factory=f"{__name__}:counted")


def items(job: ShardJob):
    return work_items(fake_job.make_plan(Path(job.output).parent / "in", job.output, job.settings))


def ready(job: ShardJob) -> RunShard:
    """As a runner has it: sent over, then set up."""
    do_fn = pickle.loads(pickle.dumps(RunShard(job)))
    do_fn.setup()
    return do_fn


def test_a_job_is_plain_data(job: ShardJob) -> None:
    assert pickle.loads(pickle.dumps(job)) == job
    assert json.loads(json.dumps(dataclasses.asdict(job)))["settings"] == job.settings


def test_a_shard_is_published_with_its_entry(job: ShardJob, byte_level: Tokenizer) -> None:
    fake = FakeEngine()
    entry = run_shard(items(job)[1], job, fake, byte_level)
    assert (entry.shard, entry.rows, entry.ok, entry.failed) == (1, 10, 10, 0)
    assert entry.completion_tokens == fake.counters["generated_tokens"] == entry.engine["generated_tokens"] > 0
    assert committed(job.output, job.plan, 1) == entry
    assert committed(job.output, job.plan, 0) is None


def test_engine_counters_are_those_of_this_shard(job: ShardJob, byte_level: Tokenizer) -> None:
    fake = FakeEngine()
    first, second = (run_shard(item, job, fake, byte_level) for item in items(job))
    assert first.engine["prompt_tokens"] + second.engine["prompt_tokens"] == fake.counters["prompt_tokens"]
    assert min(first.engine["prompt_tokens"], second.engine["prompt_tokens"]) > 0


def test_a_shard_computed_twice_stays_as_it_was(job: ShardJob, byte_level: Tokenizer) -> None:
    item = items(job)[0]
    first = run_shard(item, job, FakeEngine(), byte_level)
    part = Path(job.output) / first.file
    before = part.read_bytes(), part.stat().st_ino
    assert run_shard(item, job, FakeEngine(), byte_level).ok == first.ok
    assert (part.read_bytes(), part.stat().st_ino) == before


def test_a_finished_shard_is_not_computed_again(job: ShardJob) -> None:
    do_fn, item = ready(job), items(job)[0]
    assert list(do_fn.process(item)) == list(do_fn.process(item)) == [0]
    (loaded,) = LOADED
    assert loaded.counters["prompt_tokens"] == committed(job.output, job.plan, 0).prompt_tokens


def test_threads_share_one_engine(job: ShardJob) -> None:
    start = threading.Barrier(8)
    found: list[RunShard] = []

    def set_up() -> None:
        start.wait()
        found.append(ready(job))

    threads = [threading.Thread(target=set_up) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8
    assert len(LOADED) == 1


def test_another_run_of_the_same_model_reuses_the_engine(job: ShardJob, tmp_path: Path) -> None:
    first = ready(job)
    second = ready(dataclasses.replace(job, output=str(tmp_path / "elsewhere")))
    assert len(LOADED) == 1
    assert first is not second


@pytest.mark.parametrize(
    "change", [{"slots": 3}, {"prefill_tokens": 512}, {"settings": fake_job.settings(max_length=64)}]
)
def test_another_engine_is_loaded_where_it_must_be_and_the_unused_one_is_closed(job: ShardJob, change: dict) -> None:
    do_fn = ready(job)
    ready(dataclasses.replace(job, **change))
    old, new = LOADED
    gc.collect()
    assert not old.is_closed  # in use
    del do_fn
    gc.collect()
    assert old.is_closed
    assert not new.is_closed


def test_a_lost_engine_is_replaced_by_one(job: ShardJob) -> None:
    first, second = ready(job), ready(job)
    LOADED[0].close()
    for do_fn in (first, second):  # both find out
        with pytest.raises(EngineClosed):
            list(do_fn.process(items(job)[0]))
    third, fourth = ready(job), ready(job)
    assert len(LOADED) == 2
    assert list(third.process(items(job)[0])) == [0]
    assert list(fourth.process(items(job)[1])) == [1]


def test_a_worker_whose_device_hangs_ends_and_the_process_of_a_user_says_so_itself(job: ShardJob, monkeypatch) -> None:
    ended: list[Exception] = []
    monkeypatch.setattr(inference, "_end_process", ended.append)
    monkeypatch.setattr(activity, "_driver", threading.Event())
    hung = DeviceHung("the device does not answer")
    for expected in ([hung], []):
        do_fn = ready(job)
        monkeypatch.setattr(LOADED[-1], "_check", lambda request: (_ for _ in ()).throw(hung))
        with pytest.raises(DeviceHung):
            list(do_fn.process(items(job)[0]))
        assert ended == expected
        assert not list(Path(job.output, LEASES_NAME).glob("*.json"))
        ended.clear()
        activity.start_driving()


def test_a_shard_of_another_run_is_put_off_and_then_waited_for(job: ShardJob, caplog) -> None:
    first, last = ready(job), RunShard(job, is_last=True)
    last.setup()
    item = items(job)[0]
    with Leases(job.output, "another").taken(item.shard), ThreadPoolExecutor(1) as pool:
        (put_off,) = first.process(item)
        assert isinstance(put_off, TaggedOutput)
        assert (put_off.tag, put_off.value) == (RunShard.HELD, item)
        waiting = pool.submit(lambda: list(last.process(item)))
        while "waiting for shard 0" not in caplog.text:
            time.sleep(0.01)
        assert not waiting.done()
        run_shard(item, job, FakeEngine(), Tokenizer.load(job.checkpoint))  # by the other run
        assert waiting.result(timeout=60) == [0]
    assert LOADED[0].counters["prompt_tokens"] == 0


def test_without_a_factory_the_engine_is_loaded_as_the_job_says(job: ShardJob, monkeypatch) -> None:
    asked = []

    class Engine:
        @staticmethod
        def load(checkpoint: str, **settings: Any) -> FakeEngine:
            asked.append((checkpoint, settings))
            return FakeEngine()

    monkeypatch.setattr(engine, "Engine", Engine, raising=False)
    settings = fake_job.settings(max_length=64)
    ready(dataclasses.replace(job, engine_factory=None, slots=5, prefill_tokens=512, settings=settings))
    ((checkpoint, options),) = asked
    assert checkpoint == job.checkpoint
    with options.pop("open")(f"{job.checkpoint}/tokenizer.json") as file:
        assert file.read(1) == b"{"
    assert options == {"dtype": "float32", "slots": 5, "max_length": 64, "prefill_tokens": 512}


def test_watching_is_part_of_inference() -> None:
    """The names that the command uses."""
    assert {"cancel", "live", "reset", "Cancelled"} <= set(inference.__all__)
