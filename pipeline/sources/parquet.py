"""Parquet: ranges of rows out of row groups, only the columns that are needed, a few hundred rows at a time.

Values come as Python's own: dictionary columns are decoded, and because Python's clocks count microseconds,
columns in nanoseconds are read (and declared) in microseconds. Binary values that are valid UTF-8 become text.
A shard that begins inside a row group decodes that group from its beginning.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Collection, Iterator
from itertools import accumulate
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline import storage
from pipeline.errors import InputError
from pipeline.sources.base import Format, Parsed, Span, WorkItem, changed_since_plan, text_if_utf8

UNREADABLE = (pa.ArrowException, OSError, UnicodeDecodeError)
"""What pyarrow raises where a file is damaged; the last for names of columns that are no text."""

_BATCH_ROWS = 256
_BUFFER_BYTES = 2**20


def read_batches(url: str, start: int, stop: int, columns: Collection[str] | None) -> Iterator[pa.RecordBatch]:
    """Rows `start` to `stop` of a file, in small batches; of `columns`, those that it has."""
    with storage.open_input(url) as stream:
        try:
            file = pq.ParquetFile(stream, buffer_size=_BUFFER_BYTES, pre_buffer=False)
            if file.metadata.num_rows < stop:
                found = f"it has {file.metadata.num_rows} rows instead of {stop} or more"
                raise changed_since_plan(url, found)
            ends = list(accumulate(file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)))
            first_group = bisect_right(ends, start)
            at = ends[first_group - 1] if first_group else 0
            groups = range(first_group, bisect_left(ends, stop) + 1)
            names = [name for name in file.schema_arrow.names if columns is None or name in columns]
            for batch in file.iter_batches(_BATCH_ROWS, groups, names, use_threads=False):
                low, high = max(start - at, 0), min(stop - at, batch.num_rows)
                if low < high:
                    yield batch.slice(low, high - low)
                at += batch.num_rows
                if at >= stop:
                    return
        except UNREADABLE as e:
            raise InputError(f"rows {start} to {stop} of {url} cannot be read: {e}") from e


def count_rows(url: str) -> int:
    with storage.open_input(url) as stream:
        return _open(url, stream).metadata.num_rows


def _plan(url: str, shard_rows: int) -> Iterator[Span]:
    rows = count_rows(url)
    for first in range(0, rows, shard_rows):
        stop = min(first + shard_rows, rows)
        yield Span(first, stop - first, first, stop)


def _read(item: WorkItem, columns: Collection[str] | None) -> Iterator[Parsed]:
    for batch in read_batches(item.source, item.start, item.stop, columns):
        yield from _rows(batch)


def _columns(url: str) -> dict[str, pa.DataType]:
    with storage.open_input(url) as stream:
        schema = _open(url, stream).schema_arrow
    return {field.name: _python_type(field.type) for field in schema}


def _open(url: str, stream: object) -> pq.ParquetFile:
    try:
        file = pq.ParquetFile(stream)
        names = file.schema_arrow.names
    except UNREADABLE as e:
        raise InputError(f"{url} is not a readable Parquet file: {e}") from e
    doubled = sorted({name for name in names if names.count(name) > 1})
    if doubled:
        raise InputError(f"{url} has the column {doubled[0]!r} twice; rename one of them")
    return file


def _rows(batch: pa.RecordBatch) -> Iterator[Parsed]:
    faults: dict[int, str] = {}
    names = batch.schema.names
    columns = [_values(name, column, faults) for name, column in zip(names, batch.columns, strict=True)]
    for i in range(batch.num_rows):
        if i in faults:
            yield None, faults[i]
        else:
            yield {name: values[i] for name, values in zip(names, columns, strict=True)}, None


def _values(name: str, column: pa.Array, faults: dict[int, str]) -> list[Any]:
    """A column as Python values; a value that Python cannot represent is a fault of its row."""
    python_type = _python_type(column.type)
    if python_type != column.type:
        column = column.cast(python_type, safe=False)
    try:
        values = column.to_pylist()
    except Exception:  # of whatever kind: bytes that are not UTF-8, a year 30000, an unknown time zone
        values = []
        for i, scalar in enumerate(column):
            try:
                values.append(scalar.as_py())
            except Exception as e:
                values.append(None)
                faults[i] = f"unreadable value: column {name!r}: {e}"
    return [text_if_utf8(value) for value in values] if _holds_bytes(python_type) else values


def _python_type(t: pa.DataType) -> pa.DataType:
    """The type of a column once its values are Python's."""
    if pa.types.is_dictionary(t):
        return _python_type(t.value_type)
    if pa.types.is_timestamp(t) and t.unit == "ns":
        return pa.timestamp("us", t.tz)
    if pa.types.is_time64(t) and t.unit == "ns":
        return pa.time64("us")
    if pa.types.is_duration(t) and t.unit == "ns":
        return pa.duration("us")
    if pa.types.is_struct(t):
        return pa.struct([field.with_type(_python_type(field.type)) for field in t])
    if pa.types.is_map(t):
        key, item = (field.with_type(_python_type(field.type)) for field in (t.key_field, t.item_field))
        return pa.map_(key, item)
    if pa.types.is_list(t) or pa.types.is_large_list(t) or pa.types.is_fixed_size_list(t):
        value = t.value_field.with_type(_python_type(t.value_type))
        if pa.types.is_fixed_size_list(t):
            return pa.list_(value, t.list_size)
        return pa.large_list(value) if pa.types.is_large_list(t) else pa.list_(value)
    return t


def _holds_bytes(t: pa.DataType) -> bool:
    types = pa.types
    if types.is_binary(t) or types.is_large_binary(t) or types.is_fixed_size_binary(t) or types.is_binary_view(t):
        return True
    return any(_holds_bytes(t.field(i).type) for i in range(t.num_fields))


FORMAT = Format(suffixes=(".parquet", ".pq"), plan=_plan, read=_read, columns=_columns)
