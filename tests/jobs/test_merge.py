"""Merged files hold every row once and in order; nothing is replaced; a merge goes on where it stopped."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs import cli
from jobs import merge as merging
from jobs.commands.exit_codes import DONE, REFUSED
from jobs.merge import merge
from pipeline.errors import OutputError
from schemas.manifest import FOOTER_KEY, SUCCESS_NAME, part_name
from schemas.merged import MERGED_KEY, MERGED_NAME, MergedFile
from tests.jobs.reporting.results import completion, make_output
from tests.pipeline.example_output import contents, plan_example, run_example


@pytest.fixture
def output(tmp_path: Path) -> str:
    """Five shards of 25 rows, of which some failed."""
    return make_output(
        tmp_path / "out", lambda n: {"error": "prompt: no"} if n % 9 == 4 else completion(n), rows=45, shard_rows=10
    )


def _rows(*files: Path) -> list[dict[str, Any]]:
    return pa.concat_tables([pq.read_table(file) for file in files]).to_pylist()


def _parts(directory: Path | str) -> list[Path]:
    return sorted(Path(directory).glob("part-*.parquet"))


@pytest.mark.parametrize("rows_per_file", [1, 7, 10, 20, 44, 45, 1000])
def test_every_row_once_in_order(output: str, tmp_path: Path, rows_per_file: int) -> None:
    before = contents(Path(output))
    outcome = merge(output, str(tmp_path / "merged"), rows_per_file=rows_per_file)
    assert contents(Path(output)) == before
    files = _parts(tmp_path / "merged")
    assert len(files) == outcome.written == -(-45 // rows_per_file)
    assert {len(pq.read_table(file)) for file in files[:-1]} <= {rows_per_file}
    assert _rows(*files) == _rows(*_parts(output))
    assert (tmp_path / "merged" / SUCCESS_NAME).exists()


def test_samples_of_a_record_and_kept_columns_go_along(tmp_path: Path) -> None:
    output = str(tmp_path / "out")
    run_example(output, plan_example(tmp_path, output), samples=3).finalise()
    merge(output, str(tmp_path / "all.parquet"))
    rows = _rows(tmp_path / "all.parquet")
    assert [(row["source_row"], row["sample_index"]) for row in rows] == list(itertools.product(range(25), range(3)))
    assert [row["answer"] for row in rows[::3]] == list(range(25))


def test_the_footer_says_what_the_file_is(output: str, tmp_path: Path) -> None:
    merge(output, str(tmp_path / "merged"), rows_per_file=15)
    metadata = pq.read_metadata(_parts(tmp_path / "merged")[1]).metadata
    about = MergedFile.from_json(metadata[MERGED_KEY])
    assert (about.file, about.files, about.first_row, about.rows) == (1, 3, 15, 15)
    assert (about.first_shard, about.last_shard) == (1, 2)
    assert metadata[b"penstock.table"] == pq.read_schema(_parts(output)[0]).metadata[b"penstock.table"]
    assert FOOTER_KEY not in metadata, "it is the entry of one shard, and this file is of several"


def test_other_readers_take_the_directory_as_one_table(output: str, tmp_path: Path) -> None:
    merge(output, str(tmp_path / "merged"), rows_per_file=20)
    count = duckdb.sql(f"SELECT count(*), count(DISTINCT record_id) FROM '{tmp_path}/merged/*.parquet'").fetchall()
    assert count == [(45, 45)]


def test_again_changes_nothing_and_a_missing_file_is_made_again(output: str, tmp_path: Path) -> None:
    to = tmp_path / "merged"
    merge(output, str(to), rows_per_file=10)
    before = contents(to)
    assert merge(output, str(to), rows_per_file=10).written == 0
    assert contents(to) == before
    (to / part_name(2, 5)).unlink()
    (to / SUCCESS_NAME).unlink()
    assert merge(output, str(to), rows_per_file=10).written == 1
    assert {name: data for name, (data, _) in contents(to).items()} == {
        name: data for name, (data, _) in before.items()
    }


def test_a_full_disk_leaves_what_is_finished(output: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    to = tmp_path / "merged"
    fill, calls = merging._fill, itertools.count()

    def full(*arguments: Any) -> None:
        if next(calls) == 2:
            raise OSError(28, "No space left on device")
        fill(*arguments)

    monkeypatch.setattr(merging, "_fill", full)
    with pytest.raises(OutputError, match="No space left on device; what is finished stays"):
        merge(output, str(to), rows_per_file=10)
    assert [file.name for file in _parts(to)] == [part_name(0, 5), part_name(1, 5)]
    assert [name for name in contents(to) if name.startswith(".")] == []
    assert not (to / SUCCESS_NAME).exists()
    assert merge(output, str(to), rows_per_file=10).written == 3
    assert _rows(*_parts(to)) == _rows(*_parts(output))


def test_two_with_other_cuts_in_one_place_are_refused(output: str, tmp_path: Path) -> None:
    merge(output, str(tmp_path / "merged"), rows_per_file=10)
    with pytest.raises(OutputError, match="holds another merge \\(of other rows_per_file, files\\)"):
        merge(output, str(tmp_path / "merged"), rows_per_file=20)
    merge(output, str(tmp_path / "one.parquet"))
    other = make_output(tmp_path / "other", rows=45, name="other", model_fingerprint="model-2")
    with pytest.raises(OutputError, match=r"one\.parquet is there and is not of this merge"):
        merge(other, str(tmp_path / "one.parquet"))


@pytest.mark.parametrize("there", ["notes.txt", "part-00000-of-00001.parquet", "_plan.json"])
def test_a_directory_with_other_files_is_refused(output: str, tmp_path: Path, there: str) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / there).write_text("mine")
    with pytest.raises(OutputError, match=f"holds {there}, which is not of this merge"):
        merge(output, str(tmp_path / "mine"))
    assert (tmp_path / "mine" / there).read_text() == "mine"


def test_into_or_around_the_output_is_refused(output: str, tmp_path: Path) -> None:
    for to in (output, f"{output}/merged", f"{output}/../out/x.parquet"):
        with pytest.raises(OutputError, match="is in the output itself"):
            merge(output, to)
    with pytest.raises(OutputError, match="holds the output"):
        merge(output, str(tmp_path))


def test_an_unfinished_output_only_with_partial(tmp_path: Path) -> None:
    output = make_output(tmp_path / "out", rows=45, shards=3)
    with pytest.raises(OutputError, match=r"is not finished: 3 of 5 shards are there; .* --partial"):
        merge(output, str(tmp_path / "merged"))
    assert not (tmp_path / "merged").exists()
    outcome = merge(output, str(tmp_path / "merged"), partial=True)
    assert (outcome.merged.shards, outcome.merged.shards_total) == (3, 5)
    assert [row["source_row"] for row in _rows(*_parts(tmp_path / "merged"))] == list(range(30))


def test_an_output_without_a_shard(tmp_path: Path) -> None:
    output = make_output(tmp_path / "out", shards=0)
    with pytest.raises(OutputError, match="holds no results yet: none of 3 shards is done"):
        merge(output, str(tmp_path / "merged"), partial=True)


@pytest.mark.parametrize("damage", ["cut", "other rows", "not ours", "other job"])
def test_a_damaged_part_stops_it_with_its_name(output: str, tmp_path: Path, damage: str) -> None:
    part = _parts(output)[2]
    if damage == "cut":
        part.write_bytes(part.read_bytes()[:-50])
    elif damage == "not ours":
        pq.write_table(pq.read_table(part), part)
    elif damage == "other job":
        other = make_output(tmp_path / "other", rows=45, shard_rows=10, model_fingerprint="model-2")
        part.write_bytes(_parts(other)[2].read_bytes())
    else:
        metadata = pq.read_metadata(part).metadata
        with pq.ParquetWriter(part, pq.read_schema(part)) as writer:
            writer.write_table(pq.read_table(_parts(output)[1]).slice(0, 3))
            writer.add_key_value_metadata({FOOTER_KEY: metadata[FOOTER_KEY]})
    with pytest.raises(OutputError, match=f"{part.name} (is damaged|has 3 rows|was not written|is of another)"):
        merge(output, str(tmp_path / "merged"), rows_per_file=10)
    assert not (tmp_path / "merged" / SUCCESS_NAME).exists()
    assert len(_parts(tmp_path / "merged")) == 2


def test_a_damaged_merged_file_is_named(output: str, tmp_path: Path) -> None:
    merge(output, str(tmp_path / "merged"), rows_per_file=20)
    file = tmp_path / "merged" / part_name(1, 3)
    file.write_bytes(file.read_bytes()[:-20])
    with pytest.raises(OutputError, match="is there and is damaged"):
        merge(output, str(tmp_path / "merged"), rows_per_file=20)
    (tmp_path / "merged" / MERGED_NAME).write_text("{")
    with pytest.raises(OutputError, match=r"_merged\.json cannot be used"):
        merge(output, str(tmp_path / "merged"), rows_per_file=20)


def test_the_command(output: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    to = str(tmp_path / "merged")
    assert cli.main(["merge", output, "--to", to, "--rows-per-file", "20"]) == DONE
    said = capsys.readouterr().out
    assert "rows     45 in input order, of 45 records, 5 failed (11.11%)" in said
    assert "files    5 parts -> 3 files" in said
    assert cli.main(["merge", str(tmp_path / "data"), "--to", to]) == REFUSED
    assert "is not the output of a job" in capsys.readouterr().err


def test_into_an_object_store(output: str) -> None:
    import fsspec

    merge(output, "memory://bucket/merged", rows_per_file=30)
    names = [name.rsplit("/", 1)[-1] for name in fsspec.filesystem("memory").ls("/bucket/merged", detail=False)]
    assert sorted(names) == sorted([MERGED_NAME, SUCCESS_NAME, part_name(0, 2), part_name(1, 2)])
    fsspec.filesystem("memory").rm("/bucket", recursive=True)
