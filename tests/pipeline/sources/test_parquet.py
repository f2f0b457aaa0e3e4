"""Row ranges against the whole table, and values of every type that can lie in a Parquet file."""

import datetime as dt
import io
from decimal import Decimal

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import InputError
from pipeline.sources import open_source, parquet, read_rows

from .reading import in_memory, plan, read, values_and_errors


def written(table: pa.Table, row_group_size: int = 1000, **options) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(table, buffer, row_group_size=row_group_size, **options)
    return buffer.getvalue()


@given(
    groups=st.lists(st.integers(0, 9), min_size=1, max_size=6),
    shard_rows=st.integers(1, 12),
    batch_rows=st.integers(1, 7),
)
def test_ranges_give_the_rows_of_the_whole_file(groups, shard_rows, batch_rows):
    buffer = io.BytesIO()
    schema = pa.schema([("n", pa.int64()), ("text", pa.string())])
    total = 0
    with pq.ParquetWriter(buffer, schema) as writer:
        for rows in groups:
            numbers = range(total, total + rows)
            writer.write_table(pa.table([list(numbers), [f"row {n}" for n in numbers]], schema=schema))
            total += rows
    url = in_memory(buffer.getvalue(), ".parquet")
    if total == 0:
        with pytest.raises(InputError, match="holds no rows"):
            plan(shard_rows, path=url)
        return
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parquet, "_BATCH_ROWS", batch_rows)
        found = read(plan(shard_rows, path=url))
    assert values_and_errors(found) == [({"n": n, "text": f"row {n}"}, None) for n in range(total)]


def test_values_are_pythons_own_and_have_the_declared_types():
    day, moment = dt.date(2026, 1, 31), dt.datetime(2026, 1, 31, 12, 30, 0, 250)
    columns = {
        "flag": (pa.array([True, None]), pa.bool_()),
        "price": (pa.array([Decimal("1.50"), None], pa.decimal128(9, 2)), pa.decimal128(9, 2)),
        "day": (pa.array([day, None]), pa.date32()),
        "at": (pa.array([moment, None], pa.timestamp("ns")), pa.timestamp("us")),
        "kind": (pa.array(["a", None]).dictionary_encode(), pa.string()),
        "kinds": (
            pa.array([["a"], None], pa.list_(pa.dictionary(pa.int8(), pa.string()))),
            pa.list_(pa.field("element", pa.string())),
        ),
        "tags": (pa.array([{"k": [1, 2]}, None]), pa.struct([("k", pa.list_(pa.field("element", pa.int64())))])),
        "pairs": (pa.array([[("k", 1)], None], pa.map_(pa.string(), pa.int8())), pa.map_(pa.string(), pa.int8())),
        "span": (pa.array([dt.timedelta(seconds=1), None], pa.duration("ns")), pa.duration("us")),
        "clock": (pa.array([dt.time(1, 2), None], pa.time64("ns")), pa.time64("us")),
    }
    url = in_memory(written(pa.table({name: array for name, (array, _) in columns.items()})), ".parquet")
    declared = open_source(path=url).columns()
    rows = read(plan(1, path=url))
    assert declared == {name: declared_type for name, (_, declared_type) in columns.items()}
    assert [row.values for row in rows] == [
        {
            "flag": True,
            "price": Decimal("1.50"),
            "day": day,
            "at": moment,
            "kind": "a",
            "kinds": ["a"],
            "tags": {"k": [1, 2]},
            "pairs": [("k", 1)],
            "span": dt.timedelta(seconds=1),
            "clock": dt.time(1, 2),
        },
        dict.fromkeys(columns),
    ]
    for name, declared_type in declared.items():  # what is read can be written again as what is declared
        pa.array([row.values[name] for row in rows if row.values], declared_type)


def test_nanoseconds_are_cut_to_what_python_can_say():
    url = in_memory(written(pa.table({"at": pa.array([1_999], pa.timestamp("ns", "UTC"))})), ".parquet")
    assert [row.values for row in read(plan(9, path=url))] == [{"at": dt.datetime(1970, 1, 1, 0, 0, 0, 1, dt.UTC)}]


def test_binary_values_that_are_utf8_are_text():
    table = pa.table({"b": [b"caf\xc3\xa9", b"\xff\xfe", None], "list": [[b"a", b"\xff"], [], None]})
    assert [row.values for row in read(plan(2, path=in_memory(written(table), ".parquet")))] == [
        {"b": "café", "list": ["a", b"\xff"]},
        {"b": b"\xff\xfe", "list": []},
        {"b": None, "list": None},
    ]


def test_a_value_that_python_cannot_represent_is_a_bad_row_alone():
    invalid = pa.Array.from_buffers(
        pa.string(),
        3,
        [None, pa.py_buffer(bytes([0, 0, 0, 0, 1, 0, 0, 0, 2, 0, 0, 0, 3, 0, 0, 0])), pa.py_buffer(b"a\xffb")],
    )
    beyond = pa.array([0, 0, 10**15], pa.timestamp("s"))
    url = in_memory(written(pa.table({"text": invalid, "at": beyond})), ".parquet")
    first, second, third = read(plan(9, path=url))
    assert first.values == {"text": "a", "at": dt.datetime(1970, 1, 1)}
    assert second.error is not None
    assert second.error.startswith("unreadable value: column 'text': 'utf-8' codec can't decode")
    assert third.error is not None
    assert third.error.startswith("unreadable value: column 'at'")


def test_only_the_columns_asked_for_are_read():
    table = pa.table({"a": [1], "b": [{"c": 2, "d": 3}], "b.c": [4]})
    items = plan(9, path=in_memory(written(table), ".parquet"))
    assert [row.values for row in read(items, {"a"})] == [{"a": 1}]
    assert [row.values for row in read(items, {"b"})] == [{"b": {"c": 2, "d": 3}}]
    assert [row.values for row in read(items, {"a", "absent"})] == [{"a": 1}]
    assert [row.values for row in read(items, set())] == [{}]
    assert [row.values for row in read(items)] == [{"a": 1, "b": {"c": 2, "d": 3}, "b.c": 4}]


_NAME_OF_NO_TEXT = written(pa.table({"name": [1]}), store_schema=False).replace(b"name", b"n\xffme")


@pytest.mark.parametrize("data", [b"", b"PAR1", b"x" * 100, written(pa.table({"a": [1]}))[:-20], _NAME_OF_NO_TEXT])
def test_a_file_that_is_not_parquet_is_an_error_of_the_plan(data):
    url = in_memory(data, ".parquet")
    with pytest.raises(InputError, match=f"{url} is not a readable Parquet file"):
        plan(1, path=url)


def test_two_columns_of_one_name_are_refused():
    url = in_memory(written(pa.table([pa.array([1]), pa.array([2])], names=["a", "a"])), ".parquet")
    with pytest.raises(InputError, match="has the column 'a' twice"):
        plan(1, path=url)


def test_pages_that_are_damaged_fail_the_shard_by_name():
    data = bytearray(written(pa.table({"text": [f"{n:08d}" * 9 for n in range(500)]}), compression="snappy"))
    data[20:2000] = bytes(1980)
    (item,) = plan(1000, path=in_memory(bytes(data), ".parquet"))
    with pytest.raises(InputError, match=f"rows 0 to 500 of {item.source} cannot be read"):
        list(read_rows(item))


def test_a_file_that_became_shorter_is_noticed(tmp_path):
    path = tmp_path / "a.parquet"
    path.write_bytes(written(pa.table({"n": range(100)})))
    items = plan(30, path=str(path))
    path.write_bytes(written(pa.table({"n": range(80)})))
    assert len(list(read_rows(items[0]))) == 30
    with pytest.raises(InputError, match="has changed since the work plan was made: it has 80 rows instead of 90"):
        list(read_rows(items[2]))
