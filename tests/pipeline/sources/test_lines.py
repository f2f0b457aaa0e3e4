"""Ranges of lines against one naive pass over the whole content, for any bytes, blocks and shard sizes."""

import gzip
import tracemalloc
from contextlib import ExitStack
from unittest.mock import patch

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import InputError
from pipeline.sources import lines

from .reading import in_memory

PIECES = [b"\n", b"\r\n", b"\r", b" ", b"\t\x0b\x0c", b"\xef\xbb\xbf", b"\x00", b"\x1f", b"\xff", b"ab", b"x" * 40]
content = st.one_of(st.binary(max_size=200), st.lists(st.sampled_from(PIECES), max_size=40).map(b"".join))
small = st.integers(1, 50)


def rows_of(data: bytes, limit_bytes: int) -> list[bytes | None]:
    """The definition: what the module must find, in a few words."""
    body = data.removeprefix(b"\xef\xbb\xbf")
    found = [line if len(line) <= limit_bytes else None for line in body.split(b"\n")]
    return [line for line in found if line is None or line.strip()]


def read_all(url: str, shard_rows: int) -> list[bytes | None]:
    found = []
    for span in lines.plan_lines(url, shard_rows):
        rows = list(lines.read_lines(url, span.start, span.stop))
        assert span.first_row == len(found)
        assert span.rows == len(rows)
        found += rows
    return found


def sizes(block_bytes: int, limit_bytes: int) -> ExitStack:
    stack = ExitStack()
    stack.enter_context(patch.object(lines, "_BLOCK_BYTES", block_bytes))
    stack.enter_context(patch.object(lines, "LINE_LIMIT_BYTES", limit_bytes))
    return stack


@given(data=content, shard_rows=st.integers(1, 9), block_bytes=small, limit_bytes=small, packed=st.booleans())
def test_ranges_give_the_rows_of_the_whole_file(data, shard_rows, block_bytes, limit_bytes, packed):
    url = in_memory(gzip.compress(data) if packed else data, ".jsonl.gz" if packed else ".jsonl")
    with sizes(block_bytes, limit_bytes):
        assert read_all(url, shard_rows) == rows_of(data, limit_bytes)


@given(data=content, cut=st.integers(0, 200), shard_rows=st.integers(1, 3))
def test_a_file_that_became_shorter_is_never_read_as_if_it_were_whole(data, cut, shard_rows):
    spans = list(lines.plan_lines(in_memory(data, ".jsonl"), shard_rows))
    cut = min(cut, len(data))
    shorter = in_memory(data[:cut], ".jsonl")
    for span in spans:
        if span.stop <= cut:
            assert len(list(lines.read_lines(shorter, span.start, span.stop))) == span.rows
        else:
            with pytest.raises(InputError, match="has changed since the work plan was made"):
                list(lines.read_lines(shorter, span.start, span.stop))


def test_a_shift_of_the_content_is_noticed_by_every_shard_behind_it():
    data = b"".join(b'{"n": %d}\n' % n for n in range(100, 200))
    spans = list(lines.plan_lines(in_memory(data, ".jsonl"), 10))
    shifted = in_memory(data.replace(b"150", b"15"), ".jsonl")
    for span in spans:
        if span.first_row < 50:
            assert len(list(lines.read_lines(shifted, span.start, span.stop))) == 10
        elif span.first_row > 50:
            with pytest.raises(InputError, match="no line begins at byte"):
                list(lines.read_lines(shifted, span.start, span.stop))


def test_a_last_line_that_grew_is_noticed():
    (span,) = lines.plan_lines(in_memory(b"one\ntwo", ".txt"), 10)
    assert list(lines.read_lines(in_memory(b"one\ntwo", ".txt"), span.start, span.stop)) == [b"one", b"two"]
    with pytest.raises(InputError, match="no line ends at byte 7"):
        list(lines.read_lines(in_memory(b"one\ntwo more\n", ".txt"), span.start, span.stop))


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(lambda packed: packed[: len(packed) // 2], id="truncated"),
        pytest.param(lambda packed: packed[:-1], id="last byte missing"),
        pytest.param(lambda packed: b"{}\n" * 100, id="not gzip"),
        pytest.param(lambda packed: packed[:200] + b"\x00" * 50 + packed[250:], id="overwritten"),
        pytest.param(lambda packed: packed + b"tail", id="garbage behind"),
    ],
)
def test_damaged_gzip_is_an_error_of_the_plan_that_names_the_file(damage):
    packed = gzip.compress(b"".join(b"%d\n" % (n * n) for n in range(1000)))
    url = in_memory(damage(packed), ".jsonl.gz")
    with pytest.raises(InputError, match=rf"{url} is not a whole gzip file"):
        list(lines.plan_lines(url, 10))


def test_several_gzip_members_are_one_file():
    url = in_memory(gzip.compress(b"one\ntw") + gzip.compress(b"o\n"), ".txt.gz")
    assert read_all(url, 1) == [b"one", b"two"]


def test_other_compression_is_refused_by_name():
    with pytest.raises(InputError, match=r"use gzip \(\.gz\)"):
        list(lines.plan_lines(in_memory(b"", ".jsonl.zst"), 10))


def test_a_line_over_the_limit_is_a_row_and_never_in_memory(tmp_path):
    path = tmp_path / "huge.jsonl"
    with open(path, "wb") as f:
        f.write(b"before\n")
        for _ in range(64):
            f.write(b"x" * 2**20)
        f.write(b"\nafter\n")
    with sizes(block_bytes=2**18, limit_bytes=2**20):
        tracemalloc.start()
        try:
            assert read_all(str(path), 2) == [b"before", None, b"after"]
            assert tracemalloc.get_traced_memory()[1] < 8 * 2**20
        finally:
            tracemalloc.stop()


def test_a_line_at_the_limit_is_whole():
    with sizes(block_bytes=4, limit_bytes=10):
        assert read_all(in_memory(b"0123456789\n01234567890\n0123456789", ".txt"), 1) == [
            b"0123456789",
            None,
            b"0123456789",
        ]


def test_white_space_over_the_limit_is_a_row_too_however_it_lies_in_blocks():
    data = b"a\n" + b" " * 10 + b"\n" + b" " * 11 + b"\n" + b" " * 11
    for block_bytes in range(1, 40):
        with sizes(block_bytes, limit_bytes=10):
            assert read_all(in_memory(data, ".txt"), 1) == [b"a", None, None]
