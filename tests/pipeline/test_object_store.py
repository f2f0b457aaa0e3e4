"""A whole job in an object store, and what is made of replies that are lost or in conflict."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from pipeline import storage
from pipeline.errors import OutputError
from pipeline.manifest import Manifest

from .example_output import plan_example, run_example
from .object_store import object_store


@pytest.fixture
def store():
    with object_store() as store:
        yield store


def test_a_job_runs_and_finishes_in_an_object_store(tmp_path, store):
    storage.check_writable("s3://bucket/out")
    plan = plan_example(tmp_path, "s3://bucket/out")
    run_example("s3://bucket/out", plan, failed=frozenset({3})).finalise()
    names = ["_SUCCESS", "_errors", "_manifest", "_plan.json", "_summary.json"]
    assert storage.list_names("s3://bucket/out") == names + [f"part-0000{i}-of-00003.parquet" for i in range(3)]
    before = dict(store.objects)
    again = plan_example(tmp_path, "s3://bucket/out")
    assert Manifest("s3://bucket/out", again).todo() == []
    Manifest("s3://bucket/out", again).finalise()
    assert store.objects == before


def test_inputs_in_an_object_store_are_known_by_their_etag(tmp_path, store):
    storage.publish_if_absent("s3://bucket/in/a.jsonl", b"{}\n")
    assert storage.expand("s3://bucket/in") == storage.expand("s3://bucket/in/*.jsonl") == ["s3://bucket/in/a.jsonl"]
    before = storage.stat("s3://bucket/in/a.jsonl")
    storage.publish_over("s3://bucket/in/a.jsonl", b"[]\n")
    assert before.etag
    assert storage.stat("s3://bucket/in/a.jsonl").etag != before.etag


def test_one_of_many_puts_wins(store):
    barrier = threading.Barrier(8)

    def publish(i):
        barrier.wait()
        return storage.publish_if_absent("s3://bucket/a", bytes([i]))

    with ThreadPoolExecutor(8) as pool:
        won = list(pool.map(publish, range(8)))
    assert won.count(True) == 1
    assert storage.read_bytes("s3://bucket/a") == bytes([won.index(True)])


def test_a_lost_reply_is_not_an_error_since_the_object_is_there(tmp_path, store):
    def lost(path):
        raise TimeoutError("no reply")

    store.fault_after = staticmethod(lost)
    assert not storage.publish_if_absent("s3://bucket/a", b"data")
    assert store.objects["bucket/a"] == b"data"


def test_a_put_that_did_not_happen_is_an_error(store):
    def refused(path):
        raise PermissionError("access denied")

    store.fault_before = staticmethod(refused)
    for attempt in (
        lambda: storage.publish_if_absent("s3://bucket/a", b"data"),
        lambda: storage.publish_over("s3://bucket/a", b"data"),
        lambda: storage.check_writable("s3://bucket/out"),
    ):
        with pytest.raises(OutputError, match=r"s3://bucket/.*: access denied"):
            attempt()
    assert store.objects == {}
