"""CSV, and with tabs for commas TSV: a header line, then records. Every value is a string.

Quoting is RFC 4180, strictly: a field that begins with a quote ends with one, quotes inside are doubled, and
lines may break inside. Records are found by reading the file with the parser that later reads the rows, so a
shard never begins inside a quoted field. Lines that are empty are not rows.

A quote that is never closed would swallow the rows behind it. So of a record that does not parse, or is over
the limit, only the first line becomes a (bad) row, and the next line begins a new record.
"""

from __future__ import annotations

import csv
from collections import deque
from collections.abc import Collection, Iterable, Iterator

import pyarrow as pa

from pipeline.errors import InputError
from pipeline.sources.base import Format, Parsed, Span, WorkItem, spans_between
from pipeline.sources.lines import not_utf8, open_stream, split_lines, split_range, text_start

_RECORD_LIMIT_BYTES = 16 * 2**20  # a record is held in memory several times over while it is parsed
_MALFORMED = "invalid CSV: quotes that do not match, or a carriage return outside of them"
_Line = tuple[int, bytes | None]  # offset just behind it; its bytes without "\n", None when over the limit
_Record = tuple[int, list[str] | None, str | None]  # offset just behind it; its fields, or what is wrong


def _plan(url: str, shard_rows: int) -> Iterator[Span]:
    with open_stream(url) as stream:
        text_start(stream)
        records = _records(split_lines(stream, None, _RECORD_LIMIT_BYTES), _delimiter(url))
        start = _header(url, records)[0]
        yield from spans_between(((end,) for end, _, _ in records), start, shard_rows)


def _read(item: WorkItem, columns: Collection[str] | None) -> Iterator[Parsed]:
    delimiter = _delimiter(item.source)
    with open_stream(item.source) as stream:
        text_start(stream)
        names = _header(item.source, _records(split_lines(stream, None, _RECORD_LIMIT_BYTES), delimiter))[1]
        lines = split_range(item.source, stream, item.start, item.stop, _RECORD_LIMIT_BYTES)
        for _, fields, error in _records(lines, delimiter):
            if fields is None:
                yield None, error
            elif len(fields) != len(names):
                yield None, f"wrong number of fields: {len(fields)} where the header has {len(names)}"
            else:
                yield dict(zip(names, fields, strict=True)), None


def _columns(url: str) -> dict[str, pa.DataType] | None:
    with open_stream(url) as stream:
        text_start(stream)
        names = _header(url, _records(split_lines(stream, None, _RECORD_LIMIT_BYTES), _delimiter(url)))[1]
    return {name: pa.string() for name in names} or None


def _header(url: str, records: Iterator[_Record]) -> tuple[int, list[str]]:
    """Where the first record ends, and the names in it; no names for an empty file."""
    end, names, error = next(records, (0, [], None))
    if names is None:
        raise InputError(f"the header of {url} cannot be read: {error}")
    doubled = sorted({name for name in names if names.count(name) > 1})
    if doubled:
        raise InputError(f"the header of {url} has the column {doubled[0]!r} twice; rename one of them")
    return end, names


def _delimiter(url: str) -> str:
    return "\t" if url.removesuffix(".gz").endswith(".tsv") else ","


def _records(lines: Iterator[_Line], delimiter: str) -> Iterator[_Record]:
    """Records in order, each with the end of its last line; empty lines are left out."""
    csv.field_size_limit(max(csv.field_size_limit(), _RECORD_LIMIT_BYTES))  # the whole process has but one
    ahead: deque[_Line] = deque()  # lines that a failed record had taken
    while line := ahead.popleft() if ahead else next(lines, None):
        end, octets = line
        if octets is None:
            yield end, None, f"record over {_RECORD_LIMIT_BYTES >> 20} MiB"
        elif b'"' in octets:
            taken: list[_Line] = []
            fields, error = _parse(_take(line, ahead, lines, taken), delimiter)
            if fields is None:
                ahead.extendleft(reversed(taken[1:]))
                yield end, None, error
            else:
                invalid = _decode(b"\n".join(octets or b"" for _, octets in taken))[1]
                yield taken[-1][0], None if invalid else fields, invalid
        elif octets := octets.rstrip(b"\r"):  # without quotes: what the csv module would find, several times faster
            text, invalid = (None, _MALFORMED) if b"\r" in octets else _decode(octets)
            yield end, text.split(delimiter) if text is not None else None, invalid


def _take(first: _Line, ahead: deque[_Line], lines: Iterator[_Line], taken: list[_Line]) -> Iterator[str]:
    """Feed lines to a parser for as long as it asks for more of one record; `taken` remembers them."""
    line: _Line | None = first
    room_bytes = _RECORD_LIMIT_BYTES
    while line is not None:
        taken.append(line)
        octets = line[1]
        if octets is None or len(octets) > room_bytes:
            return
        room_bytes -= len(octets)
        yield octets.decode("utf-8", "surrogateescape") + "\n"
        line = ahead.popleft() if ahead else next(lines, None)


def _parse(lines: Iterable[str], delimiter: str) -> tuple[list[str] | None, str | None]:
    try:
        return next(csv.reader(lines, delimiter=delimiter, strict=True)), None
    except csv.Error:  # which of its faults is seen first may depend on where the shard ends
        return None, _MALFORMED


def _decode(octets: bytes) -> tuple[str | None, str | None]:
    try:
        return octets.decode(), None
    except UnicodeDecodeError as e:
        return None, not_utf8(e)


FORMAT = Format(
    suffixes=(".csv", ".tsv", ".csv.gz", ".tsv.gz"),
    plan=_plan,
    read=_read,
    columns=_columns,
)
