"""Lines of text files as bytes: where they lie, found at the speed of the disk, and reading them back.

A line ends with "\\n" or with the file. A line of nothing but ASCII whitespace is blank and is not a row. A
line over the limit is always a row, and is never held in memory. A byte order mark in front is skipped.

Files named *.gz are read through gzip: offsets are in the decompressed stream, and a reader decompresses what
lies before its shard. Reading a file of n shards decompresses it n/2 times over: large inputs are better
stored in several files, or uncompressed.
"""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from typing import BinaryIO, cast

import numpy as np

from pipeline import storage
from pipeline.errors import InputError
from pipeline.sources.base import Span, changed_since_plan, spans_between

LINE_LIMIT_BYTES = 64 * 2**20
_BLOCK_BYTES = 2**20
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_OTHER_COMPRESSION = (".bz2", ".xz", ".zst", ".zip", ".lz4")
_NEWLINE, _SPACE = 0x0A, 0x20


@contextmanager
def open_stream(url: str) -> Iterator[BinaryIO]:
    """The decompressed bytes of a file; a damaged gzip file is an InputError wherever that shows."""
    if url.endswith(_OTHER_COMPRESSION):
        raise InputError(f"{url} is compressed in a way that is not read here; use gzip (.gz), or decompress it")
    with storage.open_input(url) as raw:
        if not url.endswith(".gz"):
            yield raw
            return
        try:
            with gzip.GzipFile(fileobj=raw) as stream:
                yield cast(BinaryIO, stream)
        except (EOFError, zlib.error, gzip.BadGzipFile) as e:
            raise InputError(f"{url} is not a whole gzip file: {e}; copy or compress it again") from e


def plan_lines(url: str, shard_rows: int) -> Iterator[Span]:
    """Byte ranges of `shard_rows` rows each, from one scan of the file."""
    with open_stream(url) as stream:
        start = text_start(stream)
        yield from spans_between(_row_ends(stream, start, LINE_LIMIT_BYTES), start, shard_rows)


def read_lines(url: str, start: int, stop: int) -> Iterator[bytes | None]:
    """The rows of a planned range as lines without their end; None stands for a line over the limit."""
    with open_stream(url) as stream:
        for _, line in split_range(url, stream, start, stop, LINE_LIMIT_BYTES):
            if line is None or (line and not line.isspace()):
                yield line


def text_start(stream: BinaryIO) -> int:
    """Move to the first byte of the text, behind a byte order mark, and return its offset."""
    marked = stream.read(len(_BYTE_ORDER_MARK)) == _BYTE_ORDER_MARK
    return stream.seek(len(_BYTE_ORDER_MARK) if marked else 0)


def split_range(
    url: str, stream: BinaryIO, start: int, stop: int, limit_bytes: int
) -> Iterator[tuple[int, bytes | None]]:
    """The lines of a planned range, which must still begin and end where lines do."""
    before = b"\n"
    if start:
        stream.seek(start - 1)
        before = stream.read(1)
    if before != b"\n" and (start != len(_BYTE_ORDER_MARK) or before != _BYTE_ORDER_MARK[-1:]):
        raise changed_since_plan(url, f"no line begins at byte {start}")
    unfinished = yield from split_lines(stream, stop, limit_bytes)
    if (found := stream.tell()) < stop:
        raise changed_since_plan(url, f"it ends at byte {found} instead of {stop} or later")
    if unfinished and stream.read(1):
        raise changed_since_plan(url, f"no line ends at byte {stop}")


def split_lines(
    stream: BinaryIO, stop: int | None, limit_bytes: int
) -> Generator[tuple[int, bytes | None], None, bool]:
    """Every line from here to `stop` (None: to the end), blank or not, each with the offset just behind it.

    Lines come without their "\\n"; None stands for a line over the limit. Returns whether the last one has
    no end.
    """
    offset = stream.tell()
    pieces: list[bytes] = []  # of the line that goes on in the next block, while it is within the limit
    open_bytes = 0
    while block := stream.read(_BLOCK_BYTES if stop is None else min(_BLOCK_BYTES, stop - offset)):
        *lines, rest = block.split(b"\n")
        end = offset
        for line in lines:
            end += len(line) + 1
            if open_bytes + len(line) > limit_bytes:
                yield end, None
            else:
                yield end, b"".join((*pieces, line)) if open_bytes else line
            if open_bytes:
                pieces, open_bytes = [], 0
        open_bytes += len(rest)
        if open_bytes > limit_bytes:
            pieces.clear()
        elif rest:
            pieces.append(rest)
        offset += len(block)
    if open_bytes:
        yield offset, b"".join(pieces) if open_bytes <= limit_bytes else None
    return open_bytes > 0


def not_utf8(e: UnicodeDecodeError) -> str:
    """The reason of a bad row."""
    return f"not UTF-8: {e.reason} at byte {e.start}"


def _row_ends(stream: BinaryIO, offset: int, limit_bytes: int) -> Iterator[np.ndarray]:
    """The offsets just behind every row, one array a block.

    Only lines that begin with white space are looked at one by one, all others by vector operations.
    """
    line_start, blank = offset, True  # of the line that goes on in the next block
    while block := stream.read(_BLOCK_BYTES):
        octets = np.frombuffer(block, np.uint8)
        ends = np.flatnonzero(octets == _NEWLINE)
        if ends.size:
            starts = np.concatenate(([0], ends[:-1] + 1))
            is_row = octets[starts] > _SPACE
            for i in np.flatnonzero(~is_row):
                is_row[i] = bool(block[starts[i] : ends[i]].strip())
            is_row[0] |= not blank
            line_bytes = ends - starts
            line_bytes[0] += offset - line_start
            yield offset + 1 + ends[is_row | (line_bytes > limit_bytes)]
            line_start, blank = offset + int(ends[-1]) + 1, True
        blank = blank and not block[max(line_start - offset, 0) :].strip()
        offset += len(block)
    if not blank or offset - line_start > limit_bytes:
        yield np.array([offset])
