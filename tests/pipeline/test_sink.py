"""One file per shard, whole or not at all, and reported as what is in it, whoever wrote it."""

import dataclasses
import itertools
import json
import random
import signal
import subprocess
import sys
import threading
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline import sink, storage
from pipeline.errors import OutputError
from pipeline.manifest import Manifest
from pipeline.sink import write_shard
from pipeline.sources import open_source
from pipeline.workplan import PlanFacts, plan_job, work_items
from schemas.manifest import FOOTER_KEY, ShardEntry, part_name

from .example_output import asked, plan_example, result_rows, run_example

ROOT = Path(__file__).parents[2]


@pytest.fixture(params=["local", "memory"])
def out(request, tmp_path):
    return str(tmp_path / "out") if request.param == "local" else f"memory:///{uuid.uuid4().hex}"


def read_part(out, plan, shard):
    """A shard's rows and the entry in its footer."""
    with storage.open_input(storage.join(out, part_name(shard, len(plan.shards)))) as f:
        parquet = pq.ParquetFile(f)
        return parquet.read(), ShardEntry.from_json(parquet.metadata.metadata[FOOTER_KEY])


def read_entry(out, shard):
    return ShardEntry.from_json(storage.read_bytes(storage.join(out, "_manifest", f"{shard:05}.json")))


def in_footer(entry):
    """An entry as it is in the footer: without what is of the run."""
    return dataclasses.replace(entry, started_at=None, seconds=None, engine={}, worker=None)


def test_a_shard_is_written_in_input_order_with_its_counts(tmp_path, out):
    plan = plan_example(tmp_path, out)
    facts, item = PlanFacts.of(plan), work_items(plan)[1]
    rows = result_rows(item, facts, failed=frozenset({13, 17}), samples=2)
    entry = write_shard(out, facts, item, rows, lambda: {"decode_steps": 5})
    table, footer = read_part(out, plan, 1)
    assert entry == read_entry(out, 1)
    assert in_footer(entry) == footer
    assert entry.started_at
    assert entry.seconds is not None
    assert table.schema.equals(facts.schema)
    assert (entry.rows, entry.ok, entry.failed) == (18, 8, 2)
    assert (entry.prompt_tokens, entry.completion_tokens, entry.scored_tokens) == (30, 32, 0)
    assert entry.failed_reasons == {"prompt": 2}
    assert entry.engine == {"decode_steps": 5}
    assert table["answer"].to_pylist() == [i for i in range(10, 20) for _ in range(1 if i in (13, 17) else 2)]


def test_failed_rows_are_copied_for_reading(tmp_path, out):
    plan = plan_example(tmp_path, out)
    run_example(out, plan, failed=frozenset({3, 21}))
    assert storage.list_names(storage.join(out, "_errors")) == ["00000.jsonl", "00002.jsonl"]
    (row,) = map(json.loads, storage.read_bytes(storage.join(out, "_errors", "00002.jsonl")).splitlines())
    assert list(row)[:5] == ["record_id", "sample_index", "source_file", "source_row", "status"]
    assert (row["source_row"], row["error"], row["answer"]) == (21, "prompt: row 21 is too long", 21)
    assert "text" not in row


def test_of_two_writers_one_wins_and_both_report_the_file_that_is_there(tmp_path, out):
    plan = plan_example(tmp_path, out)
    facts, item = PlanFacts.of(plan), work_items(plan)[0]
    for round_ in range(5):
        place = storage.join(out, f"round-{round_}")
        barrier = threading.Barrier(4)

        def write(i, place=place, barrier=barrier):
            def rows():
                yield from result_rows(item, facts, text=f"writer {i}", failed=frozenset(range(i)))
                barrier.wait()

            return write_shard(place, facts, item, rows(), lambda: {"writer": i})

        with ThreadPoolExecutor(4) as pool:
            entries = list(pool.map(write, range(4)))
        table, footer = read_part(place, plan, 0)
        assert [in_footer(entry) for entry in entries] == [footer] * 4
        recorded = read_entry(place, 0)
        assert in_footer(recorded) == footer
        winner = recorded.engine["writer"]
        assert footer.failed == winner
        assert [entry.started_at is None for entry in entries].count(True) == 3
        assert set(table["text"].to_pylist()) - {None} == {f"writer {winner} 0"}


def test_a_second_writer_changes_nothing(tmp_path, out):
    plan = plan_example(tmp_path, out)
    facts, item = PlanFacts.of(plan), work_items(plan)[0]
    first = write_shard(out, facts, item, result_rows(item, facts))
    second = write_shard(out, facts, item, result_rows(item, facts, failed=frozenset({1, 2})))
    assert in_footer(first) == second
    assert read_entry(out, 0) == first
    assert second.failed == 0
    assert storage.list_names(storage.join(out, "_errors")) == []


def test_whoever_computes_a_shard_writes_the_same_bytes(tmp_path):
    """Nothing of the run, such as the time, is in a result file."""
    plan = plan_example(tmp_path, str(tmp_path / "out"))
    facts, item = PlanFacts.of(plan), work_items(plan)[0]
    for place in ("one", "two"):
        rows = result_rows(item, facts, failed=frozenset({4}), samples=2)
        write_shard(str(tmp_path / place), facts, item, rows, lambda place=place: {"decode_steps": len(place)})
        time.sleep(0.01)
    name = part_name(0, facts.shards)
    assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


WRITER = """if True:
    import sys, time
    from pathlib import Path
    from pipeline.sink import write_shard
    from pipeline.workplan import PlanFacts, read_plan, work_items
    from tests.pipeline.example_output import result_rows
    out, wait = sys.argv[1], float(sys.argv[2])
    plan = read_plan(out)
    facts = PlanFacts.of(plan)
    def rows(item):
        for row in result_rows(item, facts):
            time.sleep(wait)
            yield row
    for item in work_items(plan):
        write_shard(out, facts, item, rows(item))
"""


def test_a_writer_killed_in_the_middle_of_a_shard_leaves_nothing_that_readers_see(tmp_path):
    out = tmp_path / "out"
    plan = plan_example(tmp_path, str(out))
    process = subprocess.Popen([sys.executable, "-c", WRITER, str(out), "0.05"], cwd=ROOT)
    while not (out / "part-00000-of-00003.parquet").exists() or not list(out.glob(".part-00001*")):
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait(60)
    assert len(list(out.glob(".part-00001*.partial"))) == 1
    assert len(pd.read_parquet(out)) == 10
    assert [item.shard for item in Manifest(str(out), plan).todo()] == [1, 2]
    again = plan_example(tmp_path, str(out))
    run_example(str(out), again).finalise()
    assert not list(out.glob(".*"))
    assert pd.read_parquet(out)["source_row"].tolist() == list(range(25))


def test_killed_again_and_again_until_it_is_done_no_row_is_lost_or_doubled(tmp_path):
    out = tmp_path / "out"
    plan = plan_example(tmp_path, str(out), rows=300)
    kills = 0
    while True:
        enough = len(list(out.glob("part*"))) + random.randint(5, 12)
        process = subprocess.Popen([sys.executable, "-c", WRITER, str(out), "0.0005"], cwd=ROOT)
        while process.poll() is None and len(list(out.glob("part*"))) < enough:
            time.sleep(0.001)
        time.sleep(random.random() * 0.01)
        if process.poll() is not None:
            break
        process.kill()
        process.wait(60)
        kills += 1
    assert process.returncode == 0
    assert kills >= 2
    assert Manifest(str(out), plan).finalise().ok == 300
    assert pd.read_parquet(out)["source_row"].tolist() == list(range(300))


def edited(rows, **changes):
    return [{**row, **changes} if i == 4 else row for i, row in enumerate(rows)]


@pytest.mark.parametrize(
    ("damage", "error", "message"),
    [
        (lambda rows: rows[:-1], OutputError, "9 of 10 records came"),
        (lambda rows: rows + rows[-1:], OutputError, r"row \('a.jsonl', 9, 0\) came after the last of 10 records"),
        (lambda rows: rows[:4] + rows[5:], OutputError, r"5, 0\) came where .*4, 0\) was due"),
        (lambda rows: rows[::-1], OutputError, r"9, 0\) came where .*0, 0\) was due"),
        (lambda rows: edited(rows, sample_index=2), OutputError, r"4, 2\) came where .*3, 1\) was due"),
        (lambda rows: edited(rows, source_file="b.jsonl"), OutputError, "'b.jsonl', 4"),
        (lambda rows: edited(rows, colour="red", size=1), OutputError, "no columns: colour, size"),
        (lambda rows: edited(rows, record_id=None), pa.ArrowInvalid, "record_id"),
        (lambda rows: edited(rows, text=5), pa.ArrowTypeError, "int"),
    ],
)
def test_a_shard_that_is_not_conserved_is_never_published(tmp_path, damage, error, message):
    out = tmp_path / "out"
    plan = plan_example(tmp_path, str(out))
    facts, item = PlanFacts.of(plan), work_items(plan)[0]
    with pytest.raises(error, match=message):
        write_shard(str(out), facts, item, damage(list(result_rows(item, facts))))
    assert [path.name for path in out.iterdir()] == ["_plan.json"]


def test_a_failure_of_the_engine_publishes_nothing(tmp_path):
    out = tmp_path / "out"
    plan = plan_example(tmp_path, str(out))
    facts, item = PlanFacts.of(plan), work_items(plan)[0]

    def rows():
        yield from itertools.islice(result_rows(item, facts), 5)
        raise RuntimeError("device lost")

    with pytest.raises(RuntimeError, match="device lost"):
        write_shard(str(out), facts, item, rows())
    assert [path.name for path in out.iterdir()] == ["_plan.json"]


def test_an_empty_shard_is_a_file_with_the_schema(tmp_path, out):
    plan = plan_example(tmp_path, out)
    facts, item = PlanFacts.of(plan), replace(work_items(plan)[0], rows=0)
    entry = write_shard(out, facts, item, [])
    table, footer = read_part(out, plan, 0)
    assert in_footer(entry) == footer
    assert (table.num_rows, entry.rows, entry.ok, entry.failed) == (0, 0, 0, 0)
    assert table.schema.equals(facts.schema)


def test_rows_are_written_as_they_come_in_groups_of_bounded_size(tmp_path, monkeypatch):
    out = str(tmp_path / "out")
    plan = plan_example(tmp_path, out, rows=2000, shard_rows=2000)
    facts, (item,) = PlanFacts.of(plan), work_items(plan)
    monkeypatch.setattr(sink, "_ROW_GROUP_BYTES", 100_000)
    ahead = []

    def rows():
        for i, row in enumerate(result_rows(item, facts)):
            (partial,) = Path(out).glob(".part*.partial")
            ahead.append((i, partial.stat().st_size))
            yield row

    write_shard(out, facts, item, rows())
    metadata = pq.ParquetFile(f"{out}/part-00000-of-00001.parquet").metadata
    sizes = [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)]
    assert len(sizes) >= 3
    assert sum(sizes) == 2000
    assert max(sizes) <= 1024
    assert 0 < ahead[1100][1] < ahead[-1][1]


def test_a_score_shard_counts_its_scored_tokens(tmp_path, out):
    plan = plan_example(tmp_path, out, task="score")
    facts, item = PlanFacts.of(plan), work_items(plan)[0]
    drop = {"text", "token_ids", "completion_token_count"}
    rows = ({k: v for k, v in row.items() if k not in drop} for row in result_rows(item, facts))
    scored = ({**row, "token_count": [2, 3], "logprob": [-1.0, -2.0], "best_index": 0} for row in rows)
    assert write_shard(out, facts, item, scored).scored_tokens == 50


def test_an_entry_stays_small_whatever_the_reasons(tmp_path, out):
    plan = plan_example(tmp_path, out, rows=100, shard_rows=100)
    facts, (item,) = PlanFacts.of(plan), work_items(plan)
    rows = result_rows(item, facts, failed=frozenset(range(99)))
    entry = write_shard(out, facts, item, ({**row, "error": f"{row['source_row']}: bad"} for row in rows))
    assert len(entry.failed_reasons) == 21
    assert entry.failed_reasons["other"] == 79
    assert sum(entry.failed_reasons.values()) == entry.failed == 99


def test_values_of_any_type_are_kept_in_one_schema_for_all_shards(tmp_path, out):
    values = [1, 2.5, "a", None, True, [1], {"b": 1}, 2**70, "é", 0]
    path = tmp_path / "mixed.jsonl"
    path.write_text("".join(json.dumps({"answer": value, "number": i / 2}) + "\n" for i, value in enumerate(values)))
    columns = ["answer", "number"]
    plan = plan_job(out, open_source(path=str(path), format="jsonl"), **asked(shard_rows=2, keep_columns=columns))
    run_example(out, plan).finalise()
    tables = [read_part(out, plan, shard)[0] for shard in range(5)]
    assert all(table.schema.equals(tables[0].schema) for table in tables)
    stored = pa.concat_tables(tables)
    kept = ["1", "2.5", "a", None, "true", "[1]", '{"b":1}', str(2**70), "é", "0"]
    assert stored["answer"].to_pylist() == kept
    assert stored["number"].to_pylist() == [i / 2 for i in range(10)]
