"""A job whose checkpoint, input and output are in an object store, one request in five failing: the same rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from engine.families import read_config
from engine.model.params import leaves
from engine.weights.load import load_params
from pipeline import storage
from schemas.manifest import SUCCESS_NAME
from tests import fake_job
from tests.equivalence import processes
from tests.pipeline import tiny_tokenizers
from tests.stores import faults as fault
from tests.stores.faults import Faults
from tests.stores.objects import Objects
from tests.stores.serving import BUCKET, ROOT, Process, reached

CHECKPOINT = ROOT / "jobs" / "examples" / "arithmetic" / "checkpoint"
ROWS = 120
ASKED = fake_job.settings(id="id", keep_columns=["answer"], n=2, stop=["e"], shard_rows=15)


def upload(objects: Objects, folder: Path, prefix: str) -> None:
    for file in folder.iterdir():
        objects.put(BUCKET, f"{prefix}/{file.name}", file.read_bytes(), if_absent=False)


def local_parts(tmp_path: Path) -> tuple[Path, Path, dict[str, bytes]]:
    """Input, checkpoint and the result files of an undisturbed run."""
    rows = [*fake_job.questions(ROWS - 1), '{"id": "cut in half']
    source = fake_job.write_jsonl(tmp_path / "in" / "a.jsonl", rows)
    checkpoint = tmp_path / "checkpoint"
    checkpoint.mkdir()
    tiny_tokenizers.save_byte_level(checkpoint)
    fake_job.run(source, tmp_path / "out", checkpoint, ASKED)
    return source, checkpoint, {file.name: file.read_bytes() for file in (tmp_path / "out").glob("part-*")}


def stored_parts(objects: Objects) -> dict[str, bytes]:
    found = [facts.key for facts in objects.list(BUCKET, "out/part-")]
    return {key.removeprefix("out/"): objects.get(BUCKET, key)[1] for key in found}


def rows(parts: dict[str, bytes]) -> dict[str, list[Any]]:
    """Without what says where the input was: the job's fingerprint knows files by what their store says of them."""
    tables = {name: pq.read_table(pa.BufferReader(data)).drop(["job_fingerprint"]) for name, data in parts.items()}
    return {name: table.to_pylist() for name, table in tables.items()}


@pytest.mark.parametrize("kind", ["gcs", "s3"])
def test_a_job_on_a_failing_store(tmp_path, kind) -> None:
    source, checkpoint, expected = local_parts(tmp_path)
    assert len(expected) == 8
    with reached(kind, tmp_path / "store", Faults(rate=0.2, seed=1, slow_seconds=0.02)) as store:
        upload(store.objects, source.parent, "in")
        upload(store.objects, checkpoint, "checkpoint")
        base = f"{store.scheme}://{BUCKET}"
        fake_job.run(f"{base}/in", f"{base}/out", f"{base}/checkpoint", ASKED)
        assert rows(stored_parts(store.objects)) == rows(expected)
        assert storage.exists(f"{base}/out/{SUCCESS_NAME}")
        puts = [key for _, key in store.objects.puts if key.startswith("out/part-")]
        assert len(puts) == len(expected)
        assert sum(store.faults.seen[kind] > 0 for kind in fault.KINDS) >= 5


@pytest.mark.parametrize("kind", ["gcs", "s3"])
def test_a_checkpoint_on_a_failing_store(tmp_path, kind) -> None:
    """In ranges, by several readers at a time."""
    expected = load_params(str(CHECKPOINT), read_config(str(CHECKPOINT)).model, dtype="float32")
    with reached(kind, tmp_path / "store", Faults(rate=0.2, seed=2, slow_seconds=0.02)) as store:
        upload(store.objects, CHECKPOINT, "checkpoint")
        there = f"{store.scheme}://{BUCKET}/checkpoint"
        config = read_config(there, storage.open_input).model
        params = load_params(there, config, dtype="float32", open=storage.open_input, readers=4)
        assert store.faults.seen.total() > store.faults.seen["requests"]
    for (path, array), (other, read) in zip(leaves(expected), leaves(params), strict=True):
        assert path == other
        np.testing.assert_array_equal(array, read)


def test_a_job_goes_on_when_the_store_was_killed(tmp_path) -> None:
    """Objects stay, requests and uploads under way are lost, nobody answers for a while."""
    source, checkpoint, expected = local_parts(tmp_path)
    store = Process("gcs", tmp_path / "store")
    try:
        job = {"source": source, "output": f"gs://{BUCKET}/out", "checkpoint": checkpoint, "asked": ASKED}
        run = processes.start(environment=store.environment, engine="tests.fake_engine:slow", slots=4, **job)
        objects = Objects(tmp_path / "store")
        while not stored_parts(objects):
            assert run.exitcode is None
            run.join(0.02)
        store.kill()
        before = stored_parts(objects)
        assert len(before) < len(expected)
        store.start()
        run.join()
        assert run.exitcode == 0
        assert stored_parts(objects) == expected
        assert before.items() <= expected.items()
    finally:
        store.kill()
