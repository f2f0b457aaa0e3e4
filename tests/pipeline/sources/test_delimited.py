"""CSV against Python's own reader on the whole text, and what becomes of quotes that go wrong."""

import csv
import gzip
import io
from unittest.mock import patch

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import InputError
from pipeline.sources import delimited, lines, open_source

from .reading import in_memory, plan, read, values_and_errors

PIECES = [b",", b'"', b'""', b"\n", b"\r\n", b"\r", b"a", b'","', b'"\n"', b"\xff", b"\x00", b" ", b"long" * 8]
content = st.lists(st.sampled_from(PIECES), max_size=40).map(b"".join)
blocks = st.integers(1, 60)
MALFORMED = "invalid CSV: quotes that do not match, or a carriage return outside of them"


def read_csv(data: bytes, shard_rows: int, suffix: str = ".csv"):
    return values_and_errors(read(plan(shard_rows, path=in_memory(data, suffix))))


field = st.text(st.one_of(st.sampled_from(',"\n\r\t é😀'), st.characters(codec="utf-8")), max_size=8)


# With "\n" alone the csv module writes a carriage return unquoted, which no reader could tell from a line's end.
written = st.sampled_from([("\r\n", csv.QUOTE_MINIMAL), ("\r\n", csv.QUOTE_ALL), ("\n", csv.QUOTE_ALL)])


@given(
    table=st.lists(st.tuples(field, field, field), min_size=1, max_size=12),
    shard_rows=st.integers(1, 5),
    block_bytes=blocks,
    style=written,
    suffix=st.sampled_from([".csv", ".tsv", ".csv.gz"]),
)
def test_what_csv_writes_comes_back(table, shard_rows, block_bytes, style, suffix):
    names = ("a", "b b", "ç")
    text = io.StringIO()
    delimiter = "\t" if suffix == ".tsv" else ","
    writer = csv.writer(text, delimiter=delimiter, lineterminator=style[0], quoting=style[1])
    writer.writerows([names, *table])
    data = b"\xef\xbb\xbf" + text.getvalue().encode()
    with patch.object(lines, "_BLOCK_BYTES", block_bytes):
        found = read_csv(gzip.compress(data) if suffix.endswith(".gz") else data, shard_rows, suffix)
    assert found == [(dict(zip(names, row, strict=True)), None) for row in table]


@given(data=content, shard_rows=st.integers(1, 4), block_bytes=blocks, limit_bytes=blocks)
def test_shards_and_blocks_do_not_change_the_rows_of_any_content(data, shard_rows, block_bytes, limit_bytes):
    data = b"a,b\n1,2\n" + data
    with patch.object(delimited, "_RECORD_LIMIT_BYTES", limit_bytes + 3):
        whole = read_csv(data, 1000)
        with patch.object(lines, "_BLOCK_BYTES", block_bytes):
            assert read_csv(data, shard_rows) == whole


@given(data=content)
def test_where_the_whole_text_is_strict_csv_rows_are_those_of_the_csv_module(data):
    data = b"a,b\n1,2\n" + data
    try:
        records = list(csv.reader(io.StringIO(data.decode("latin-1"), newline="\n"), strict=True))
        data.decode()
    except (csv.Error, UnicodeDecodeError):
        return
    expected = [dict(zip("ab", record, strict=True)) if len(record) == 2 else None for record in records if record]
    assert [values for values, _ in read_csv(data, 3)] == expected[1:]


def test_values_are_strings_and_columns_say_so():
    url = in_memory(b"id,n\n1,2.50\n,\n", ".csv")
    assert values_and_errors(read(plan(9, path=url))) == [
        ({"id": "1", "n": "2.50"}, None),
        ({"id": "", "n": ""}, None),
    ]
    assert open_source(path=url).columns() == {"id": pa.string(), "n": pa.string()}


def test_rows_that_do_not_fit_the_header_are_bad_rows():
    assert read_csv(b"a,b\n1\n1,2,3\n\n\r\n1,2\n \n", 2) == [
        (None, "wrong number of fields: 1 where the header has 2"),
        (None, "wrong number of fields: 3 where the header has 2"),
        ({"a": "1", "b": "2"}, None),
        (None, "wrong number of fields: 1 where the header has 2"),
    ]


def test_tabs_alone_are_a_row_of_empty_fields():
    assert read_csv(b"a\tb\tc\n\t\t\n", 2, ".tsv") == [({"a": "", "b": "", "c": ""}, None)]


def test_bytes_that_are_not_utf8_are_a_bad_row_quoted_or_not():
    assert read_csv(b'a,b\n1,\xff\n1,"\n\xff"\n"\xc3\xa9",\xc3\xa9\n', 1) == [
        (None, "not UTF-8: invalid start byte at byte 2"),
        (None, "not UTF-8: invalid start byte at byte 4"),
        ({"a": "é", "b": "é"}, None),
    ]


@pytest.mark.parametrize("shard_rows", [1, 2, 3, 100])
def test_a_quote_that_is_never_closed_costs_one_row(shard_rows):
    good = b"".join(b"%d,x\n" % n for n in range(100))
    found = read_csv(b'a,b\n1,"open\n' + good, shard_rows)
    assert found == [(None, MALFORMED), *(({"a": str(n), "b": "x"}, None) for n in range(100))]


def test_a_quote_inside_a_field_costs_one_row():
    assert read_csv(b'a,b\n"1"2,x\n3,4" pipe\n5,6\n', 1) == [
        (None, MALFORMED),
        ({"a": "3", "b": '4" pipe'}, None),
        ({"a": "5", "b": "6"}, None),
    ]


def test_a_last_record_cut_in_half_is_a_bad_row():
    assert read_csv(b'a,b\n1,2\n3,"fo', 5) == [({"a": "1", "b": "2"}, None), (None, MALFORMED)]


def test_a_carriage_return_outside_quotes_is_a_bad_row():
    assert read_csv(b'a,b\n1\r2,3\n"1"\r2,3\n"1\r2",3\n', 1) == [
        (None, MALFORMED),
        (None, MALFORMED),
        ({"a": "1\r2", "b": "3"}, None),
    ]


def test_records_over_the_limit_are_bad_rows_line_by_line():
    long_line = b"z" * 60 + b",1,1\n"
    long_record = b'"' + b"x" * 30 + b"\n" + b"y" * 30 + b'",1,1\n'
    with patch.object(delimited, "_RECORD_LIMIT_BYTES", 50):
        found = read_csv(b"a,b,c\n" + long_line + long_record + b"1,2,3\n", 1)
    assert found == [
        (None, "record over 0 MiB"),  # of the small limit, in whole MiB
        (None, MALFORMED),
        ({"a": "y" * 30 + '"', "b": "1", "c": "1"}, None),
        ({"a": "1", "b": "2", "c": "3"}, None),
    ]


def test_fields_longer_than_the_default_of_the_csv_module():
    text = "long, " * 50_000
    assert read_csv(f'a,b\n1,"{text}"\n'.encode(), 1) == [({"a": "1", "b": text}, None)]


@pytest.mark.parametrize(
    ("header", "complaint"),
    [
        (b"a,b,a\n1,2,3\n", "has the column 'a' twice"),
        (b'a,"b\n1,2\n', "cannot be read: invalid CSV"),
        (b"a,\xff\n1,2\n", "cannot be read: not UTF-8"),
    ],
)
def test_a_header_that_cannot_be_used_is_an_error_of_the_plan(header, complaint):
    url = in_memory(header, ".csv")
    with pytest.raises(InputError, match=rf"the header of {url} {complaint}"):
        plan(1, path=url)


@pytest.mark.parametrize("data", [b"", b"\xef\xbb\xbf", b"\n\n\n", b"a,b\n", b"a,b\n\r\n\n"])
def test_a_file_without_rows_is_an_empty_input(data):
    with pytest.raises(InputError, match="holds no rows"):
        plan(1, path=in_memory(data, ".csv"))
