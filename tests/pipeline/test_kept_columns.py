"""One type per kept column for the whole job, which holds every value of it."""

import datetime
import decimal

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import InputError
from pipeline.kept_columns import convert, kept_fields
from pipeline.sources.base import Row

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(), inner, max_size=2),
    max_leaves=3,
)


class Untyped:
    """A source whose format declares no types, as JSONL."""

    def columns(self):
        return None


class Typed:
    def __init__(self, **types):
        self.types = types

    def columns(self):
        return self.types


def rows_of(*values):
    return (Row(i, {"x": value}) for i, value in enumerate(values))


def field_for(*values):
    (field,) = kept_fields(Untyped(), ["x"], rows_of(*values))
    return field


@pytest.mark.parametrize(
    ("values", "dtype"),
    [
        ([True, None, False], pa.bool_()),
        ([1, None, -5], pa.int64()),
        ([2**63 - 1, -(2**63)], pa.int64()),
        ([1, 0.5], pa.float64()),
        ([0.5], pa.float64()),
        (["a", None], pa.string()),
        ([None, None], pa.string()),
        ([True, 1], pa.string()),
        ([1, "a"], pa.string()),
        ([2**63], pa.string()),
        ([2**53 + 1, 0.5], pa.string()),
        ([[1]], pa.string()),
        ([{"a": 1}], pa.string()),
    ],
)
def test_a_column_has_the_narrowest_type_that_holds_all_its_values(values, dtype):
    assert field_for(*values).type == dtype
    assert field_for(*reversed(values)).type == dtype


@given(st.lists(VALUES))
def test_every_value_that_was_seen_can_be_stored(values):
    field = field_for(*values)
    stored = pa.array([convert(value, field) for value in values], field.type)
    assert stored.null_count == values.count(None)


@given(st.lists(st.none() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False)))
def test_numbers_are_stored_exactly(values):
    field = field_for(*values)
    assert pa.array([convert(value, field) for value in values], field.type).to_pylist() == values


@given(st.lists(VALUES), st.randoms())
def test_the_type_does_not_depend_on_the_order_of_rows(values, random):
    shuffled = list(values)
    random.shuffle(shuffled)
    assert field_for(*values) == field_for(*shuffled)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("a", "a"),
        (5, "5"),
        (0.5, "0.5"),
        (True, "true"),
        ([1, "é"], '[1,"é"]'),
        ({"b": 1, "a": None}, '{"a":null,"b":1}'),
    ],
)
def test_a_text_column_keeps_text_and_stores_the_rest_as_json(value, text):
    assert convert(value, pa.field("x", pa.string())) == text


def test_reading_stops_when_no_further_row_can_change_a_type():
    rows = rows_of(None, 1, "a", 2)
    kept_fields(Untyped(), ["x"], rows)
    assert [row.row for row in rows] == [3]


def test_numeric_columns_are_read_to_the_end():
    assert field_for(*[1] * 5000, 0.5).type == pa.float64()


def test_a_column_that_no_row_has_is_named_with_those_there_are():
    rows = [Row(0, None, "invalid JSON"), Row(1, {"question": "q", "answer": 1})]
    with pytest.raises(InputError, match=r"'answr'.*only answer, question"):
        kept_fields(Untyped(), ["answer", "answr"], rows)


def test_a_column_that_some_rows_lack_is_null_there():
    (field,) = kept_fields(Untyped(), ["x"], [Row(0, {"y": 1}), Row(1, {"x": 1})])
    assert field.type == pa.int64()
    assert convert({}.get("x"), field) is None


def test_an_input_of_bad_rows_alone_still_has_a_type():
    assert kept_fields(Untyped(), ["x"], [Row(0, None, "invalid JSON")]) == [pa.field("x", pa.string())]


def test_no_row_is_read_when_no_column_is_kept():
    assert kept_fields(Untyped(), [], iter(lambda: pytest.fail("a row was read"), None)) == []


@pytest.mark.parametrize(
    ("dtype", "value"),
    [
        (pa.int64(), 1.5),
        (pa.int64(), True),
        (pa.int64(), "1"),
        (pa.int64(), 2**63),
        (pa.float64(), True),
        (pa.float64(), 2**53 + 1),
        (pa.bool_(), 1),
        (pa.string(), "\ud800"),
        (pa.list_(pa.int64()), ["a"]),
        (pa.timestamp("us"), "yesterday"),
    ],
)
def test_a_value_that_does_not_fit_is_refused_with_its_column(dtype, value):
    with pytest.raises(InputError, match=f"^kept column 'x': .* does not fit {dtype}".replace("[", r"\[")):
        convert(value, pa.field("x", dtype))


def test_nesting_beyond_any_json_writer_is_refused_not_a_crash():
    value = []
    for _ in range(100_000):
        value = [value]
    with pytest.raises(InputError, match="kept column 'x'"):
        convert(value, pa.field("x", pa.string()))


DECLARED = {
    pa.int32(): [1],
    pa.timestamp("us", "UTC"): [datetime.datetime(2026, 1, 31, tzinfo=datetime.UTC)],
    pa.dictionary(pa.int32(), pa.string()): ["a", "a"],
    pa.large_string(): ["a"],
    pa.string_view(): ["a"],
    pa.large_binary(): [b"\xff"],
    pa.binary_view(): [b"\xff"],
    pa.null(): [None],
    pa.float16(): [0.5],
    pa.list_(pa.dictionary(pa.int8(), pa.string())): [["a"]],
    pa.large_list(pa.int8()): [[1]],
    pa.list_(pa.int8(), 2): [[1, 2]],
    pa.struct([("a", pa.large_string()), ("b", pa.list_(pa.float16()))]): [{"a": "a", "b": [0.5]}],
    pa.struct([]): [{}],
    pa.map_(pa.string(), pa.int8()): [[("a", 1)]],
    pa.month_day_nano_interval(): [pa.MonthDayNano([1, 2, 3])],
    pa.decimal128(5, 2): [decimal.Decimal("1.10")],
    pa.duration("s"): [datetime.timedelta(seconds=1)],
    pa.uuid(): [b"0123456789abcdef"],
    pa.run_end_encoded(pa.int32(), pa.int64()): [1],
}


@pytest.mark.parametrize("dtype", DECLARED, ids=str)
def test_a_declared_type_is_stored_as_one_that_parquet_holds(dtype, tmp_path):
    (field,) = kept_fields(Typed(x=dtype), ["x"], [])
    values = [convert(value, field) for value in DECLARED[dtype]]
    pq.write_table(pa.Table.from_pylist([{"x": value} for value in values], pa.schema([field])), tmp_path / "t.parquet")
    assert pq.read_table(tmp_path / "t.parquet").num_rows == len(values)


def test_a_declared_column_that_is_missing_is_named_with_those_there_are():
    with pytest.raises(InputError, match=r"'z'.*only x, y"):
        kept_fields(Typed(y=pa.int8(), x=pa.int8()), ["z"], [])
