"""Input columns that a job carries to its output: one Arrow type per column, decided once for the whole job.

Parquet and TFDS declare their types. Other formats are read at plan time, as far as needed, and a column
gets the narrowest type that holds all its values: bool, int64, float64, else string. A string column keeps
strings as they are and everything else as JSON text, so it holds any value; reading stops as soon as every
column has come to that. The decision does not depend on the order of rows, on shards or on a sample.
"""

from __future__ import annotations

import numbers
import reprlib
from collections.abc import Collection, Iterable, Sequence
from typing import Any

import pyarrow as pa

from .errors import InputError
from .records import canonical_json
from .sources.base import Row, Source

_EXACT_IN_DOUBLE = 2**53


def kept_fields(source: Source, names: Sequence[str], rows: Iterable[Row]) -> list[pa.Field]:
    """The Arrow fields of the kept columns; `rows` are all rows of the input, read as far as needed."""
    if not names:
        return []
    declared = source.columns()
    if declared is None:
        return _inferred(names, rows)
    _refuse_missing(names, declared)
    return [pa.field(name, _storable(declared[name])) for name in names]


def convert(value: Any, field: pa.Field) -> Any:
    """`value` as the column stores it; InputError when it does not fit: that record fails, not the job."""
    if value is None:
        return None
    try:
        if pa.types.is_string(field.type):
            text = value if isinstance(value, str) else canonical_json(value)
            text.encode()  # refuses half a surrogate pair
            return text
        if isinstance(value, bool) and not pa.types.is_boolean(field.type):
            raise TypeError("it is a boolean")
        if pa.types.is_integer(field.type) and not isinstance(value, numbers.Integral):
            raise TypeError("it is not an integer")  # Arrow would truncate a float
        pa.scalar(value, field.type)
    except (TypeError, ValueError, OverflowError, RecursionError, pa.ArrowException) as e:
        shown = reprlib.repr(value)
        raise InputError(f"kept column {field.name!r}: {shown} does not fit {field.type} ({e})") from e
    return value


def _inferred(names: Sequence[str], rows: Iterable[Row]) -> list[pa.Field]:
    kinds: dict[str, set[str]] = {name: set() for name in names}
    unsettled = set(names)  # those whose type a further value can change
    seen: dict[str, None] = {}
    for row in rows:
        if row.values is None:
            continue
        seen.update(dict.fromkeys(row.values))
        for name in tuple(unsettled):
            if (value := row.values.get(name)) is not None:
                kinds[name].add(_kind(value))
                if pa.types.is_string(_narrowest(kinds[name])):
                    unsettled.discard(name)
        if not unsettled:
            break
    if seen:
        _refuse_missing(names, seen)
    return [pa.field(name, _narrowest(kinds[name])) for name in names]


def _refuse_missing(names: Iterable[str], present: Collection[str]) -> None:
    for name in names:
        if name not in present:
            listed = ", ".join(sorted(present)[:20])
            raise InputError(f"cannot keep column {name!r}: the input has no such column, only {listed}")


def _kind(value: Any) -> str:
    if isinstance(value, bool):
        return "bool"
    if isinstance(value, int):
        if abs(value) <= _EXACT_IN_DOUBLE:
            return "int"
        return "wide int" if -(2**63) <= value < 2**63 else "other"
    return "float" if isinstance(value, float) else "other"


def _narrowest(kinds: set[str]) -> pa.DataType:
    if kinds == {"bool"}:
        return pa.bool_()
    if kinds and kinds <= {"int", "wide int"}:
        return pa.int64()
    if kinds and kinds <= {"int", "float"}:
        return pa.float64()
    return pa.string()


def _storable(dtype: pa.DataType) -> pa.DataType:
    """What a declared type is stored as: encodings undone, JSON text for what Parquet cannot hold."""
    if isinstance(dtype, pa.BaseExtensionType):
        return _storable(dtype.storage_type)
    if pa.types.is_dictionary(dtype) or pa.types.is_run_end_encoded(dtype):
        return _storable(dtype.value_type)
    if pa.types.is_large_string(dtype) or pa.types.is_string_view(dtype):
        return pa.string()
    if pa.types.is_large_binary(dtype) or pa.types.is_binary_view(dtype):
        return pa.binary()
    if pa.types.is_float16(dtype):
        return pa.float32()
    if pa.types.is_struct(dtype) and dtype.num_fields:
        return pa.struct([(field.name, _storable(field.type)) for field in dtype])
    if pa.types.is_nested(dtype):
        is_list = not (pa.types.is_struct(dtype) or pa.types.is_map(dtype) or pa.types.is_union(dtype))
        return pa.list_(_storable(dtype.value_type)) if is_list else pa.string()
    if pa.types.is_null(dtype) or pa.types.is_interval(dtype):
        return pa.string()
    return dtype
