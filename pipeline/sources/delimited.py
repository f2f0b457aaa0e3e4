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
from collections.abc import Collection, Iterator

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
    feed = _Feed(lines)
    reader = csv.reader(feed, delimiter=delimiter, strict=True)
    while True:
        feed.begin_record()
        try:
            fields = next(reader, None)
        except csv.Error:  # which of several faults is seen first may depend on where the shard ends
            yield feed.keep_first_line(), None, _MALFORMED
            continue
        if fields:
            invalid = feed.invalid_utf8()
            yield feed.taken[-1][0], None if invalid else fields, invalid
        elif fields is None:
            if not feed.taken:
                return
            yield feed.keep_first_line(), None, f"record over {_RECORD_LIMIT_BYTES >> 20} MiB"


class _Feed:
    """Lines for the parser, which asks for one after another until a record is complete."""

    def __init__(self, lines: Iterator[_Line]) -> None:
        self._lines = lines
        self._ahead: deque[_Line] = deque()  # lines that a failed record had taken
        self.begin_record()

    def begin_record(self) -> None:
        self.taken: list[_Line] = []
        self._room_bytes = _RECORD_LIMIT_BYTES
        self._valid = True

    def __iter__(self) -> _Feed:
        return self

    def __next__(self) -> str:
        """The next line; the input seems to end where a record would grow over the limit."""
        line = self._ahead.popleft() if self._ahead else next(self._lines)
        self.taken.append(line)
        octets = line[1]
        if octets is None or len(octets) > self._room_bytes:
            raise StopIteration
        self._room_bytes -= len(octets)
        try:
            return octets.decode() + "\n"
        except UnicodeDecodeError:
            self._valid = False
            return octets.decode("utf-8", "surrogateescape") + "\n"

    def keep_first_line(self) -> int:
        """Give back all lines of a record but the first, and return where that one ends."""
        self._ahead.extendleft(reversed(self.taken[1:]))
        return self.taken[0][0]

    def invalid_utf8(self) -> str | None:
        """What keeps the record from being text."""
        if self._valid:
            return None
        try:
            b"\n".join(octets or b"" for _, octets in self.taken).decode()
        except UnicodeDecodeError as e:
            return not_utf8(e)
        return None


FORMAT = Format(
    suffixes=(".csv", ".tsv", ".csv.gz", ".tsv.gz"),
    plan=_plan,
    read=_read,
    columns=_columns,
)
