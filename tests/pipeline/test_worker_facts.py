"""The record of a process that computes, and what is refused because of another's."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from pipeline import storage, worker_facts
from pipeline.errors import JobError
from pipeline.worker_facts import WorkerRecord, refuse_other_dtype, workers
from schemas.worker import WORKERS_NAME
from tests import fake_job
from tests.fake_engine import FakeEngine
from tests.pipeline import tiny_tokenizers

FACTS: dict[str, Any] = FakeEngine().facts


def test_a_run_leaves_a_record_of_its_worker(tmp_path: Path) -> None:
    source = fake_job.write_jsonl(tmp_path / "in" / "a.jsonl", fake_job.questions(20))
    fake_job.run(source, tmp_path / "out", tiny_tokenizers.save_byte_level(tmp_path), run="0123456789abcdef")
    (worker,) = workers(str(tmp_path / "out"))
    assert (worker.run, worker.worker.rpartition(":")[2]) == ("0123456789abcdef", str(os.getpid()))
    assert {name: getattr(worker, name) for name in FACTS} == FACTS
    assert worker.engine["generated_tokens"] > 0


def test_it_is_written_now_and_then(tmp_path: Path, monkeypatch) -> None:
    now = [0.0]
    monkeypatch.setattr(worker_facts.time, "monotonic", lambda: now[0])
    record = WorkerRecord(str(tmp_path), "run")
    written = []
    for seconds in (0, 59, 61, 100, 122):
        now[0] = seconds
        record.write(FACTS, {"decode_steps": seconds})
        written.append(next(workers(str(tmp_path))).engine["decode_steps"])
    assert written == [0, 0, 61, 61, 122]


def test_a_name_that_is_no_file_name_and_a_record_that_cannot_be_read(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(worker_facts, "worker_name", lambda: "../host:1")
    WorkerRecord(str(tmp_path), "run").write(FACTS, {})
    storage.publish_over(storage.join(str(tmp_path), WORKERS_NAME, "damaged.json"), b"{")
    assert [worker.worker for worker in workers(str(tmp_path))] == ["../host:1"]
    assert {path.name for path in (tmp_path / WORKERS_NAME).iterdir()} == {"run-..-host-1.json", "damaged.json"}


def test_a_job_whose_dtype_is_auto_does_not_mix_two(tmp_path: Path) -> None:
    refuse_other_dtype(str(tmp_path), FACTS)
    WorkerRecord(str(tmp_path), "run").write({**FACTS, "dtype": "bfloat16", "device_kind": "TPU v5 lite"}, {})
    refuse_other_dtype(str(tmp_path), {**FACTS, "dtype": "bfloat16"})
    with pytest.raises(
        JobError, match=r"auto is float32 on this worker \(none, fake\), and .* bfloat16 \(none, TPU v5"
    ):
        refuse_other_dtype(str(tmp_path), FACTS)


def test_a_run_in_another_dtype_is_refused_before_it_computes(tmp_path: Path) -> None:
    source = fake_job.write_jsonl(tmp_path / "in" / "a.jsonl", fake_job.questions(20))
    checkpoint = tiny_tokenizers.save_byte_level(tmp_path)
    output = tmp_path / "out"
    fake_job.make_plan(source, output, fake_job.settings(dtype="auto"))
    WorkerRecord(str(output), "run").write({**FACTS, "dtype": "bfloat16"}, {})
    with pytest.raises(Exception, match=r"model\.dtype: auto is float32 on this worker"):
        fake_job.run(source, output, checkpoint, fake_job.settings(dtype="auto"))
    assert not list(output.glob("part-*"))
