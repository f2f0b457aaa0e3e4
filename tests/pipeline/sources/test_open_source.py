"""Which files an input means, what they are called in the output, and what is refused before anything runs."""

import gzip
import uuid
from dataclasses import replace

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.errors import InputError
from pipeline.sources import open_source, read_rows

from .reading import in_memory, plan, read

FILES = {
    "a.jsonl": b'{"n": 1}\n{"n": 2}\n',
    "b.jsonl.gz": gzip.compress(b'{"n": 3}\n'),
    "deep/er/c.ndjson": b'\n{"n": 4}\n\n{"n": 5}',
    "empty.jsonl": b"",
    "_SUCCESS": b"",
    ".hidden.jsonl": b'{"n": 99}\n',
}


@pytest.fixture(params=["local", "file://", "memory://"])
def root(request, tmp_path):
    """The same files in each kind of place."""
    base = f"memory:///{uuid.uuid4().hex}" if request.param == "memory://" else str(tmp_path)
    fs, path = fsspec.core.url_to_fs(base)
    for name, data in FILES.items():
        fs.makedirs(f"{path}/{name}".rsplit("/", 1)[0], exist_ok=True)
        fs.pipe_file(f"{path}/{name}", data)
    return f"file://{base}" if request.param == "file://" else base


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("", {"a.jsonl": [1, 2], "b.jsonl.gz": [3], "deep/er/c.ndjson": [4, 5]}),
        ("/", {"a.jsonl": [1, 2], "b.jsonl.gz": [3], "deep/er/c.ndjson": [4, 5]}),
        ("/*.jsonl*", {"a.jsonl": [1, 2], "b.jsonl.gz": [3]}),
        ("/**/*.ndjson", {"deep/er/c.ndjson": [4, 5]}),
        ("/deep/*/c.ndjson", {"er/c.ndjson": [4, 5]}),
        ("/deep", {"er/c.ndjson": [4, 5]}),
        ("/a.jsonl", {"a.jsonl": [1, 2]}),
        ("/deep/er/c.ndjson", {"c.ndjson": [4, 5]}),
    ],
)
@pytest.mark.parametrize("shard_rows", [1, 1000])
def test_files_are_named_below_what_the_pattern_spells_out(root, pattern, expected, shard_rows):
    found: dict[str, list[int]] = {}
    for item in plan(shard_rows, path=root + pattern):
        found.setdefault(item.source_file, []).extend(row.values["n"] for row in read([item]) if row.values)
    assert found == expected


def test_names_in_the_output_do_not_depend_on_which_files_are_there_yet(root):
    fs, path = fsspec.core.url_to_fs(root)
    for month in ("01", "02"):
        fs.makedirs(f"{path}/2026/{month}")
    fs.pipe_file(f"{path}/2026/01/x.csv", b"a\n1\n")
    (item,) = plan(9, path=f"{root}/2026/**/*.csv")
    assert item.source_file == "01/x.csv"
    fs.pipe_file(f"{path}/2026/02/x.csv", b"a\n1\n")
    assert [item.source_file for item in plan(9, path=f"{root}/2026/**/*.csv")] == ["01/x.csv", "02/x.csv"]


def test_a_relative_path_is_read_from_anywhere(tmp_path, monkeypatch):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "a.txt").write_text("one\n")
    monkeypatch.chdir(tmp_path)
    items = [plan(9, path=pattern)[0] for pattern in ("data", "data/*.txt", "*/a.txt", "data/a.txt")]
    monkeypatch.chdir("/")
    assert [item.source_file for item in items] == ["a.txt", "a.txt", "data/a.txt", "a.txt"]
    assert all(read([item])[0].values == {"text": "one"} for item in items)


def test_files_say_how_large_they_are(root):
    facts = open_source(path=f"{root}/*.jsonl").files()
    assert [(fact.url.rsplit("/", 1)[1], fact.size_bytes) for fact in facts] == [("a.jsonl", 18), ("empty.jsonl", 0)]


def test_a_given_format_is_stronger_than_a_name_but_not_in_a_directory(tmp_path):
    (tmp_path / "rows.log").write_text('{"n": 1}\n')
    assert plan(9, path=str(tmp_path / "rows.log"), format="jsonl")[0].format == "jsonl"
    assert plan(9, path=str(tmp_path / "*.log"), format="text")[0].format == "text"
    with pytest.raises(InputError, match=r"rows\.log, which is not named as jsonl files are; .* such as \*\.jsonl"):
        open_source(path=str(tmp_path), format="jsonl")


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ({}, "either files .path. or a TFDS dataset"),
        ({"path": "a.jsonl", "tfds": "b"}, "either files .path. or a TFDS dataset"),
        ({"path": "a.jsonl", "split": "train"}, "split and data_dir belong to TFDS"),
        ({"tfds": "b", "split": "train", "format": "jsonl"}, "remove format: jsonl"),
        ({"path": "a.jsonl", "format": "xml"}, "unknown format 'xml'; there are jsonl, csv, text, parquet"),
        ({"path": "/nowhere/at/all/*.jsonl"}, "no input file matches /nowhere/at/all"),
        ({"path": "memory:///nowhere/a.jsonl"}, "no input file matches memory:///nowhere/a.jsonl"),
    ],
)
def test_an_input_that_cannot_be_meant_is_refused(arguments, complaint):
    with pytest.raises(InputError, match=complaint):
        open_source(**arguments)


def test_a_format_that_the_names_do_not_tell_is_asked_for():
    with pytest.raises(InputError, match="does not tell its format; give it: jsonl, csv, text, parquet"):
        open_source(path=in_memory(b"", ".json"))
    first = in_memory(b"{}\n", ".jsonl")
    fsspec.filesystem("memory").pipe_file(first.replace(".jsonl", ".csv"), b"a\n1\n")
    with pytest.raises(InputError, match="not named as csv files are"):
        open_source(path=first.replace(".jsonl", ".*"))


@pytest.mark.parametrize(
    ("suffix", "data"), [(".jsonl", b""), (".jsonl", b"\n \n\t\r\n"), (".txt", b"\xef\xbb\xbf\n"), (".jsonl.gz", b"")]
)
def test_an_input_without_rows_is_an_error(suffix, data):
    with pytest.raises(InputError, match=r"holds no rows \(files: 1, all of them empty\)"):
        plan(10, path=in_memory(data, suffix))


def test_files_that_differ_in_their_columns_are_refused_by_column(tmp_path):
    pq.write_table(pa.table({"a": [1], "b": [1]}), tmp_path / "1.parquet")
    pq.write_table(pa.table({"b": [2], "a": [2]}), tmp_path / "2.parquet")
    assert [row.values for row in read(plan(9, path=str(tmp_path)))] == [{"a": 1, "b": 1}, {"b": 2, "a": 2}]
    pq.write_table(pa.table({"a": [1], "b": ["text"]}), tmp_path / "3.parquet")
    with pytest.raises(InputError, match=r"differ in the column 'b': int64 at first, string in .*3\.parquet"):
        plan(9, path=str(tmp_path))
    (tmp_path / "1.csv").write_text("")
    (tmp_path / "2.csv").write_text("a,b\n1,2\n")
    (tmp_path / "3.csv").write_text("a\n1\n")
    with pytest.raises(InputError, match=r"differ in the column 'b': string at first, missing in .*3\.csv"):
        plan(9, path=str(tmp_path / "*.csv"))


def test_rows_lost_or_gained_within_a_shard_are_an_error_not_a_silence(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"n": 1}\n{"n": 2}\n{"n": 3}\n')
    (item,) = plan(10, path=str(path))
    path.write_text('{"n": 1}\n\n\n\n\n\n\n\n\n\n{"n": 3}\n')
    with pytest.raises(InputError, match="2 of 3 rows in shard 0"):
        list(read_rows(item))
    path.write_text("{}\n{}\n{}\n{}\n{}\n{}\n{}\n{}\n{}\n")
    with pytest.raises(InputError, match="more than 3 rows in shard 0"):
        list(read_rows(item))
    path.unlink()
    with pytest.raises(InputError, match="there is no file"):
        list(read_rows(replace(item)))


def test_gzip_in_many_shards_is_warned_about(caplog):
    url = in_memory(gzip.compress(b"{}\n" * 100), ".jsonl.gz")
    assert len(plan(10, path=url)) == 10
    assert not caplog.records
    plan(1, path=url)
    assert f"{url}: each of its 100 shards decompresses it from the beginning" in caplog.text
