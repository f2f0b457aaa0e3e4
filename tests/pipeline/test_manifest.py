"""What is done is what the result files say; everything else is derived from them, and the same every time."""

import dataclasses
import json
import os
import uuid

import duckdb
import pandas as pd
import pyarrow.parquet as pq
import pytest

from pipeline import storage
from pipeline.errors import OutputError
from pipeline.manifest import Manifest, committed, summarise
from pipeline.sink import write_shard
from pipeline.storage.drivers import resolve
from pipeline.workplan import PlanFacts, work_items
from schemas.manifest import ShardEntry, Summary, part_name

from .example_output import contents, plan_example, result_rows, run_example


@pytest.fixture(params=["local", "memory"])
def out(request, tmp_path):
    return str(tmp_path / "out") if request.param == "local" else f"memory:///{uuid.uuid4().hex}"


@pytest.fixture
def local(tmp_path):
    """A finished job on a local disk: its output and its plan."""
    out = tmp_path / "out"
    plan = plan_example(tmp_path, str(out))
    run_example(str(out), plan, failed=frozenset({3})).finalise()
    return out, plan


def remove(out, *parts):
    fs, path = resolve(storage.join(out, *parts))
    fs.rm_file(path)


def untimed(entry):
    """An entry as anybody can derive it from the file."""
    return dataclasses.replace(entry, started_at=None, seconds=None, engine={}, worker=None)


def write(out, plan, shard, **changes):
    item = work_items(plan)[shard]
    return write_shard(out, PlanFacts.of(plan), item, result_rows(item, PlanFacts.of(plan), **changes))


def test_todo_is_what_is_not_done(tmp_path, out):
    plan = plan_example(tmp_path, out)
    manifest = Manifest(out, plan)
    assert (manifest.done(), [item.shard for item in manifest.todo()]) == (set(), [0, 1, 2])
    write(out, plan, 1)
    assert (manifest.done(), [item.shard for item in manifest.todo()]) == ({1}, [0, 2])
    run_example(out, plan)
    assert (manifest.done(), manifest.todo()) == ({0, 1, 2}, [])


def test_a_finished_job_has_a_summary_and_then_its_mark(tmp_path, out):
    plan = plan_example(tmp_path, out)
    summary = run_example(out, plan, failed=frozenset({3, 21, 22}), samples=2).finalise()
    assert (summary.shards, summary.rows, summary.ok, summary.failed) == (3, 47, 22, 3)
    assert summary.failed_fraction == 3 / 25
    assert summary.failed_reasons == {"prompt": 3}
    assert (summary.prompt_tokens, summary.completion_tokens) == (75, 88)
    assert summary.started_at <= summary.finished_at
    assert Summary.from_json(storage.read_bytes(storage.join(out, "_summary.json"))) == summary
    assert storage.read_bytes(storage.join(out, "_SUCCESS")) == b""


def test_the_mark_is_never_there_without_the_summary(tmp_path, out, monkeypatch):
    manifest = run_example(out, plan_example(tmp_path, out))

    def fail(*args):
        raise OSError("no space left")

    with monkeypatch.context() as broken:
        broken.setattr(storage, "publish_over", fail)
        with pytest.raises(OSError, match="no space left"):
            manifest.finalise()
    assert "_SUCCESS" not in storage.list_names(out)
    assert manifest.finalise().ok == 25


def test_finishing_a_finished_job_changes_no_byte(local, tmp_path):
    out, plan = local
    before = contents(out)
    again = plan_example(tmp_path, str(out))
    manifest = Manifest(str(out), again)
    assert manifest.todo() == []
    assert manifest.finalise() == Manifest(str(out), plan).finalise()
    assert contents(out) == before


def test_pandas_and_duckdb_read_the_output_as_it_stands(local):
    out, _ = local
    frame = pd.read_parquet(out)
    assert frame["source_row"].tolist() == list(range(25))
    assert frame["answer"].tolist() == list(range(25))
    assert frame["status"].value_counts().to_dict() == {"ok": 24, "failed": 1}
    query = "select count(*), sum(answer), count(*) filter (status = 'failed'), count(text)"
    assert duckdb.sql(f"{query} from '{out}/*.parquet'").fetchall() == [(25, 300, 1, 24)]


def test_leftovers_of_killed_writers_are_invisible_to_readers(local):
    out, _ = local
    (out / ".part-00001-of-00003.parquet.0.partial").write_bytes(b"PAR1 half")
    (out / "_manifest" / ".00001.json.0.partial").write_bytes(b"{")
    assert len(pd.read_parquet(out)) == 25
    assert duckdb.sql(f"select count(*) from '{out}/*.parquet'").fetchall() == [(25,)]
    assert pq.read_table(out).num_rows == 25


def test_files_whose_writer_was_killed_get_their_entry_from_the_footer(tmp_path, out):
    plan = plan_example(tmp_path, out)
    entries = run_example(out, plan, failed=frozenset({3})).entries()
    errors = storage.read_bytes(storage.join(out, "_errors", "00000.jsonl"))
    for name in ("00000.json", "00002.json"):
        remove(out, "_manifest", name)
    remove(out, "_errors", "00000.jsonl")
    assert [entry.shard for entry in Manifest(out, plan).entries()] == [1]
    manifest = Manifest(out, plan)
    assert manifest.done() == {0, 1, 2}
    assert manifest.entries() == Manifest(out, plan).entries() == [untimed(entries[0]), entries[1], untimed(entries[2])]
    assert storage.read_bytes(storage.join(out, "_errors", "00000.jsonl")) == errors


def test_a_shard_whose_file_was_deleted_is_done_again_with_its_own_entry(tmp_path, out):
    plan = plan_example(tmp_path, out)
    run_example(out, plan, failed=frozenset({3})).finalise()
    remove(out, part_name(0, 3))
    assert [item.shard for item in Manifest(out, plan).todo()] == [0]
    assert [entry.shard for entry in Manifest(out, plan).entries()] == [1, 2]
    with pytest.raises(OutputError, match="1 of 3 shards are not there yet; run the job again"):
        Manifest(out, plan).finalise()
    assert run_example(out, plan).finalise().failed == 0


def test_a_committed_shard_needs_no_engine(tmp_path, out):
    plan = plan_example(tmp_path, out)
    assert committed(out, PlanFacts.of(plan), 1) is None
    entry = write(out, plan, 1)
    remove(out, "_manifest", "00001.json")
    assert committed(out, PlanFacts.of(plan), 1) == untimed(entry)
    assert Manifest(out, plan).entries() == [untimed(entry)]


def test_an_entry_that_was_derived_by_another_stands(tmp_path, out, monkeypatch):
    """Another run finds the file just before its writer makes the entry."""
    plan, real = plan_example(tmp_path, out), storage.publish_if_absent

    def overtaken(url, data):
        if url.endswith("_manifest/00001.json"):
            monkeypatch.setattr(storage, "publish_if_absent", real)
            committed(out, PlanFacts.of(plan), 1)
        return real(url, data)

    monkeypatch.setattr(storage, "publish_if_absent", overtaken)
    entry = write(out, plan, 1)
    assert (entry.started_at, entry.ok) == (None, 10)
    assert Manifest(out, plan).entries() == [entry]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda data: data[: len(data) // 2], "it is not whole JSON"),
        (lambda data: b"", "it is not whole JSON"),
        (lambda data: b"\0" * len(data), "it is not whole JSON"),
        (lambda data: json.dumps({**json.loads(data), "colour": 1}).encode(), "unknown key 'colour'"),
        (lambda data: json.dumps({**json.loads(data), "version": 9}).encode(), "newer Penstock"),
    ],
)
def test_a_damaged_entry_is_refused_and_can_be_made_again(tmp_path, out, damage, message):
    plan = plan_example(tmp_path, out)
    before = run_example(out, plan).finalise()
    url = storage.join(out, "_manifest", "00001.json")
    storage.publish_over(url, damage(storage.read_bytes(url)))
    with pytest.raises(OutputError, match=rf"00001\.json cannot be used: .*{message}.*delete it, and it is made again"):
        Manifest(out, plan).finalise()
    remove(out, "_manifest", "00001.json")
    again = Manifest(out, plan).finalise()
    assert (again.rows, again.ok, again.completion_tokens) == (before.rows, before.ok, before.completion_tokens)


def edit_entry(out, **changes):
    url = storage.join(out, "_manifest", "00001.json")
    storage.publish_over(url, json.dumps({**json.loads(storage.read_bytes(url)), **changes}).encode())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ok": 9}, r"part-00001-of-00003\.parquet has 9 of 10 records"),
        ({"job_fingerprint": "another"}, r"00001\.json is of another job or shard"),
    ],
)
def test_a_job_that_lost_rows_or_holds_foreign_entries_does_not_finish(tmp_path, out, changes, message):
    plan = plan_example(tmp_path, out)
    run_example(out, plan)
    edit_entry(out, **changes)
    with pytest.raises(OutputError, match=message):
        Manifest(out, plan).finalise()
    assert not {"_SUCCESS", "_summary.json"} & set(storage.list_names(out))


def test_a_result_file_of_another_plan_is_refused(local):
    out, plan = local
    (out / "part-00000-of-00009.parquet").write_bytes((out / "part-00000-of-00003.parquet").read_bytes())
    with pytest.raises(OutputError, match=r"part-00000-of-00009\.parquet, which is not of this job"):
        Manifest(str(out), plan).done()


def test_a_result_file_of_another_shard_or_program_is_refused(local, tmp_path):
    out, plan = local
    part = out / "part-00001-of-00003.parquet"
    (out / "_manifest" / "00001.json").unlink()
    part.write_bytes((out / "part-00000-of-00003.parquet").read_bytes())
    with pytest.raises(OutputError, match=r"part-00001-of-00003\.parquet is of another job or shard"):
        Manifest(str(out), plan).done()
    part.write_bytes(part.read_bytes().replace(b"record_id", b"record\xffid"))
    with pytest.raises(OutputError, match=r"part-00001-of-00003\.parquet is damaged"):
        Manifest(str(out), plan).done()
    pd.DataFrame({"a": [1]}).to_parquet(part)
    with pytest.raises(OutputError, match=r"part-00001-of-00003\.parquet was not written by Penstock"):
        Manifest(str(out), plan).done()


def test_a_result_file_of_a_newer_version_is_not_taken_for_damaged(tmp_path, out, monkeypatch):
    plan = plan_example(tmp_path, out)
    facts, item = PlanFacts.of(plan), work_items(plan)[1]
    with monkeypatch.context() as newer:
        newer.setattr(ShardEntry, "LATEST", 2)
        plain = ShardEntry.__init__
        newer.setattr(ShardEntry, "__init__", lambda self, **fields: plain(self, **{"version": 2, **fields}))
        write_shard(out, facts, item, result_rows(item, facts))
    with pytest.raises(OutputError, match=r"cannot be used: .* newer Penstock .*upgrade$"):
        committed(out, facts, 1)


def test_half_a_result_file_is_refused_with_a_way_out(local):
    out, plan = local
    part = out / "part-00001-of-00003.parquet"
    (out / "_manifest" / "00001.json").unlink()
    os.truncate(part, part.stat().st_size // 2)
    with pytest.raises(OutputError, match=r"00001-of-00003\.parquet is damaged: .*; delete it and run the job again"):
        Manifest(str(out), plan).done()
    part.unlink()
    assert run_example(str(out), plan).finalise().ok == 24


def test_entries_are_read_once_as_they_come(tmp_path, out, monkeypatch):
    plan = plan_example(tmp_path, out)
    manifest, read = Manifest(out, plan), []
    real = storage.read_bytes
    monkeypatch.setattr(storage, "read_bytes", lambda url: read.append(url) or real(url))
    for shard in range(3):
        write(out, plan, shard)
        read.clear()
        assert [entry.shard for entry in manifest.entries()] == list(range(shard + 1))
        assert manifest.entries() == manifest.entries()
        assert [url[-6:] for url in read] == [f"{shard}.json"]


def test_the_sum_of_no_entries(tmp_path, out):
    summary = summarise(plan_example(tmp_path, out), [])
    assert (summary.shards, summary.rows, summary.started_at, summary.failed_fraction) == (0, 0, None, 0.0)
