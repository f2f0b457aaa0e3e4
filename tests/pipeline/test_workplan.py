"""One plan per output: decided once, taken over without reading the input again, and never mixed with another."""

import json
import os
import pickle
import threading
import uuid
from concurrent.futures import ThreadPoolExecutor

import pyarrow as pa
import pytest

from pipeline import storage, workplan
from pipeline.errors import InputError, JobError, OutputError, PlanMismatch
from pipeline.sources import open_source, read_rows
from pipeline.storage.drivers import resolve
from pipeline.workplan import PlanFacts, commit_plan, make_plan, plan_job, read_plan, work_items
from schemas.manifest import PLAN_NAME, decode_fields

from .example_output import asked, contents, plan_example, run_example, write_jsonl


@pytest.fixture(params=["local", "memory"])
def out(request, tmp_path):
    return str(tmp_path / "out") if request.param == "local" else f"memory:///{uuid.uuid4().hex}"


def source_of(tmp_path, rows=25, name="a.jsonl"):
    return open_source(path=write_jsonl(tmp_path / "input" / name, rows), format="jsonl")


def edit_plan(out, **changes):
    values = json.loads(storage.read_bytes(storage.join(out, PLAN_NAME)))
    storage.publish_over(storage.join(out, PLAN_NAME), json.dumps({**values, **changes}).encode())


class Unreadable:
    """A source that may be looked at but not read."""

    def __init__(self, source):
        self.files = source.files
        self.columns = source.columns

    def work_items(self, shard_rows):
        pytest.fail("the input was read again")


def test_a_plan_has_every_row_once(tmp_path, out):
    plan = plan_example(tmp_path, out)
    items = work_items(plan)
    assert plan.rows_total == 25
    assert [(item.shard, item.first_row, item.rows) for item in items] == [(0, 0, 10), (1, 10, 10), (2, 20, 5)]
    assert [row.row for item in items for row in read_rows(item)] == list(range(25))
    assert decode_fields(plan.columns) == [pa.field("answer", pa.int64())]
    assert read_plan(out) == plan


def test_the_same_job_takes_over_the_stored_plan_without_reading_the_input(tmp_path, out):
    plan = plan_example(tmp_path, out)
    stored = storage.read_bytes(storage.join(out, PLAN_NAME))
    again = plan_job(out, Unreadable(source_of(tmp_path)), **asked(name="another label"))
    assert again == plan
    assert storage.read_bytes(storage.join(out, PLAN_NAME)) == stored


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"task": "score"}, "task: 'generate' -> 'score'"),
        ({"settings": {"template": "{{ question }}", "sampling": {"temperature": 0.7, "stop": ["\n"]}}},
         "settings.sampling.temperature: 0.0 -> 0.7"),
        ({"settings": {"template": "{{ question }}", "sampling": {"temperature": 0.0, "stop": []}}},
         "settings.sampling.stop[0]: '\\n' -> (absent)"),
        ({"settings": {}}, "settings.template: '{{ question }}' -> (absent)"),
        ({"model_fingerprint": "model-2"}, "model_fingerprint: 'model-1' -> 'model-2'"),
        ({"tokenizer_fingerprint": "x"}, "tokenizer_fingerprint: 'tokenizer-1' -> 'x'"),
        ({"shard_rows": 5}, "shard_rows: 10 -> 5"),
        ({"keep_columns": []}, "keep_columns[0]: 'answer: int64' -> (absent)"),
        ({"keep_columns": ["question"]}, "keep_columns[0]: 'answer: int64' -> 'question: null'"),
    ],
)  # fmt: skip
def test_another_job_is_refused_with_what_differs(tmp_path, out, changes, message):
    plan_example(tmp_path, out)
    with pytest.raises(PlanMismatch) as refused:
        plan_job(out, source_of(tmp_path), **asked(**changes))
    assert f"\n  {message}\n" in str(refused.value)
    assert str(refused.value).startswith(f"{out} was planned for another job:")
    assert str(refused.value).endswith("choose a new output.path, or delete the old output to start again")


def test_a_changed_input_is_refused_also_when_its_size_and_time_are_the_same(tmp_path, out):
    plan_example(tmp_path, out)
    path = tmp_path / "input" / "a.jsonl"
    times = (path.stat().st_atime_ns, path.stat().st_mtime_ns)
    path.write_text(path.read_text().replace("q7", "Q7"))
    os.utime(path, ns=times)
    with pytest.raises(PlanMismatch, match=r"inputs\..*a\.jsonl: .*, sha256:.* -> .*, sha256:"):
        plan_job(out, open_source(path=str(path), format="jsonl"), **asked())


def test_another_file_is_refused_by_name(tmp_path, out):
    plan_example(tmp_path, out)
    write_jsonl(tmp_path / "input" / "b.jsonl", 1)
    with pytest.raises(PlanMismatch, match=r"inputs\..*b\.jsonl: \(absent\) -> '32 bytes, sha256:"):
        plan_job(out, open_source(path=str(tmp_path / "input"), format="jsonl"), **asked())


def test_a_touched_input_is_the_same_input(tmp_path, out):
    plan = plan_example(tmp_path, out)
    os.utime(tmp_path / "input" / "a.jsonl", (0, 0))
    assert plan_job(out, source_of(tmp_path), **asked()) == plan


def test_a_difference_deep_in_a_long_text_is_shown(tmp_path, out):
    plan_example(tmp_path, out, settings={"template": "x" * 500 + "answer briefly" + "y" * 500})
    with pytest.raises(PlanMismatch, match=r"template: \.\.\.x+answer briefly.* -> \.\.\.x+reply briefly.*\.\.\.\n"):
        plan_job(out, source_of(tmp_path), **asked(settings={"template": "x" * 500 + "reply briefly" + "y" * 500}))


def test_many_differences_are_not_all_listed(tmp_path, out):
    plan_example(tmp_path, out)
    with pytest.raises(PlanMismatch, match=r"\n  \.\.\.\n") as refused:
        plan_job(out, source_of(tmp_path), **asked(settings={str(i): i for i in range(50)}))
    assert len(str(refused.value).splitlines()) == 8


@pytest.mark.parametrize("place", [0, 70_000, 4_000_000, 9_999_999])
def test_a_large_file_is_identified_by_pieces_from_all_over(tmp_path, monkeypatch, place):
    monkeypatch.setattr(workplan, "_HASHED_WHOLE_BYTES", 5_000_000)
    monkeypatch.setattr(workplan, "_PIECE_BYTES", 200_000)
    path = tmp_path / "large"
    path.write_bytes(bytes(10_000_000))
    before = workplan._identified(storage.stat(str(path)))
    assert before.etag.startswith("sampled-sha256:")
    with open(path, "r+b") as f:
        f.seek(place)
        f.write(b"x")
    assert workplan._identified(storage.stat(str(path))) != before


def test_an_object_with_an_etag_is_not_read(monkeypatch):
    monkeypatch.setattr(storage, "open_input", lambda url: pytest.fail("it was read"))
    assert workplan._identified(storage.FileFacts("gs://b/a", 9, "md5")).etag == "md5"


def test_of_many_planners_at_once_one_plan_remains(tmp_path, out):
    sources = [source_of(tmp_path) for _ in range(6)]
    barrier = threading.Barrier(6)

    def plan(i):
        made = make_plan(sources[i], **asked(name=f"run {i}"))
        barrier.wait()
        return commit_plan(out, made)

    with ThreadPoolExecutor(6) as pool:
        plans = list(pool.map(plan, range(6)))
    assert all(plan == read_plan(out) for plan in plans)


def test_the_fingerprint_is_that_of_the_results(tmp_path):
    def fingerprint(place, **changes):
        return make_plan(source_of(tmp_path / place), **asked(**changes)).job_fingerprint

    first = fingerprint("here")
    assert first == fingerprint("elsewhere")
    assert first == fingerprint("here", name="another label", shard_rows=3)
    others = [
        fingerprint("here", task="score"),
        fingerprint("here", settings={"seed": 8}),
        fingerprint("here", model_fingerprint="model-2"),
        fingerprint("here", tokenizer_fingerprint="tokenizer-2"),
        fingerprint("here", keep_columns=[]),
        make_plan(source_of(tmp_path, rows=26), **asked()).job_fingerprint,
        make_plan(source_of(tmp_path, name="b.jsonl"), **asked()).job_fingerprint,
    ]
    assert len({first, *others}) == 8


def test_kept_columns_are_typed_by_all_rows_of_all_files(tmp_path, out):
    write_jsonl(tmp_path / "input" / "a.jsonl", 25)
    (tmp_path / "input" / "b.jsonl").write_text('{"answer": 0.5}\n')
    plan = plan_job(out, open_source(path=str(tmp_path / "input"), format="jsonl"), **asked())
    assert decode_fields(plan.columns) == [pa.field("answer", pa.float64())]


def test_kept_columns_are_read_a_file_at_a_time(tmp_path, monkeypatch):
    read = []
    monkeypatch.setattr(workplan, "read_rows", lambda item: read.append(item) or read_rows(item))
    make_plan(source_of(tmp_path), **asked())
    assert [(item.first_row, item.rows) for item in read] == [(0, 25)]


def test_a_kept_column_that_clashes_with_ours_is_refused_by_name(tmp_path, out):
    with pytest.raises(JobError, match=r"output\.keep_columns: .*'text'.*rename"):
        plan_job(out, Unreadable(source_of(tmp_path)), **asked(keep_columns=["answer", "text"]))
    assert storage.list_names(out) == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"task": "embed"}, "task: 'embed' is unknown; use generate or score"), ({"shard_rows": 0}, "output.shard_rows")],
)
def test_what_cannot_be_planned_is_refused_by_field(tmp_path, changes, message):
    with pytest.raises(JobError, match=message):
        make_plan(source_of(tmp_path), **asked(**changes))


def test_an_empty_input_is_refused(tmp_path):
    class Empty(Unreadable):
        def work_items(self, shard_rows):
            return iter(())

    with pytest.raises(InputError, match=r"no rows: .*a\.jsonl"):
        make_plan(Empty(source_of(tmp_path)), **asked())


def test_an_output_with_other_files_is_refused_and_left_alone(tmp_path, out):
    storage.publish_if_absent(storage.join(out, "notes.txt"), b"mine")
    with pytest.raises(OutputError, match=r"holds notes.txt but no _plan.json.*new or empty"):
        plan_example(tmp_path, out)
    assert storage.list_names(out) == ["notes.txt"]


def test_an_output_whose_plan_was_deleted_is_refused(tmp_path, out):
    run_example(out, plan_example(tmp_path, out)).finalise()
    resolve(out)[0].rm(resolve(storage.join(out, PLAN_NAME))[1])
    with pytest.raises(OutputError, match=r"part-00000-of-00003\.parquet.* but no _plan\.json"):
        plan_example(tmp_path, out)


def test_what_killed_writers_left_is_removed_by_the_next_run(tmp_path):
    out = tmp_path / "out"
    run_example(str(out), plan_example(tmp_path, str(out)))
    for name in (".part-00000-of-00003.parquet.0.partial", "_manifest/.00001.json.0.partial"):
        (out / name).write_bytes(b"PAR1 half of it")
    before = contents(out)
    plan_example(tmp_path, str(out))
    assert contents(out).items() < before.items()
    assert len(before) - len(contents(out)) == 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"version": 2}, "newer Penstock .version 2, this one reads up to 1.; upgrade"),
        ({"colour": "red"}, "unknown key 'colour'"),
        ({"shards": 3}, "'shards' must be"),
        ({"inputs": [{"url": "a"}]}, r"missing key 'inputs\[0\].etag', 'inputs\[0\].size_bytes'"),
    ],
)
def test_a_plan_that_cannot_be_understood_is_refused(tmp_path, out, changes, message):
    plan_example(tmp_path, out)
    edit_plan(out, **changes)
    with pytest.raises(OutputError, match=rf"_plan\.json cannot be used: .*{message}"):
        plan_example(tmp_path, out)


def test_half_a_plan_is_refused(tmp_path, out):
    plan_example(tmp_path, out)
    url = storage.join(out, PLAN_NAME)
    storage.publish_over(url, storage.read_bytes(url)[:200])
    with pytest.raises(OutputError, match=r"_plan\.json cannot be used: it is not whole JSON"):
        read_plan(out)


def test_a_damaged_shard_list_is_refused(tmp_path, out):
    plan_example(tmp_path, out)
    edit_plan(out, shards=[{"shard": 0}])
    with pytest.raises(OutputError, match="damaged shard list"):
        work_items(read_plan(out))


def test_a_place_without_a_plan_is_no_output(out):
    with pytest.raises(OutputError, match="not the output of a job"):
        read_plan(out)


def test_workers_get_small_facts(tmp_path, out):
    plan = plan_example(tmp_path, out)
    facts = pickle.loads(pickle.dumps(PlanFacts.of(plan)))
    assert facts == PlanFacts.of(plan)
    assert facts.schema.names[-1] == "answer"
    assert json.loads(json.dumps(facts.__dict__)) == facts.__dict__
    assert len(pickle.dumps(facts)) < 2000
