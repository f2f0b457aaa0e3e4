"""Frames arrive as they were sent; what is no frame, or too large, is refused before memory is taken for it."""

from __future__ import annotations

import json
import socket
import struct
import threading
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.runtime.channel import (
    LARGEST_ARRAYS_BYTES,
    LARGEST_HEADER_BYTES,
    MAGIC,
    BadFrame,
    Closed,
    Frame,
    read_frame,
    write_frame,
)

Pair = tuple[socket.socket, socket.socket]


@pytest.fixture
def pair() -> Iterator[Pair]:
    ends = socket.socketpair()
    for end in ends:
        end.settimeout(10.0)
    with ends[0], ends[1]:
        yield ends


def through(ends: Pair, frame: Frame) -> Frame:
    sender = threading.Thread(target=write_frame, args=(ends[0], frame))
    sender.start()
    received = read_frame(ends[1])
    sender.join()
    return received


def raw(
    header: object, arrays: bytes = b"", *, header_bytes: int | None = None, array_bytes: int | None = None
) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    sizes = (len(text) if header_bytes is None else header_bytes, len(arrays) if array_bytes is None else array_bytes)
    return struct.pack("<4sIQ", MAGIC, *sizes) + text + arrays


ARRAYS = st.builds(
    lambda dtype, shape, seed: np.random.default_rng(seed).integers(0, 100, shape).astype(dtype),
    st.sampled_from([np.bool_, np.int32, np.uint32, np.float32]),
    st.lists(st.integers(0, 5), max_size=4),
    st.integers(0, 9),
)


@given(st.text(max_size=20), st.dictionaries(st.text(max_size=5), st.integers()), st.lists(ARRAYS, max_size=4))
def test_a_frame_arrives_as_it_was_sent(name: str, facts: dict, arrays: list[np.ndarray]) -> None:
    ends = socket.socketpair()
    with ends[0], ends[1]:
        received = through(ends, Frame(name, facts, arrays))
    assert (received.name, received.facts) == (name, facts)
    assert len(received.arrays) == len(arrays)
    for got, sent in zip(received.arrays, arrays, strict=True):
        assert got.dtype == sent.dtype
        np.testing.assert_array_equal(got, sent)


def test_large_and_strided_arrays_arrive(pair: Pair) -> None:
    large = np.arange(3_000_000, dtype=np.int32).reshape(1000, 3000)
    received = through(pair, Frame("x", arrays=(large.T[::2], np.zeros((), np.float32))))
    np.testing.assert_array_equal(received.arrays[0], large.T[::2])
    assert received.arrays[1].shape == ()


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"GET / HTTP/1.1\r\nHost: here\r\n\r\n", "does not speak"),
        (raw({}, header_bytes=LARGEST_HEADER_BYTES + 1), "too large"),
        (raw({}, array_bytes=LARGEST_ARRAYS_BYTES + 1), "too large"),
        (raw(b"{"), "cannot be read"),
        (raw(b"[" * 100_000), "cannot be read"),
        (raw([1]), "cannot be read"),
        (raw({"name": "x", "facts": {}}), "cannot be read"),
        (raw({"name": "x", "facts": {}, "arrays": [["|O", [1]]]}, b"12345678"), "cannot be read"),
        (raw({"name": "x", "facts": {}, "arrays": [[["<i4"], [1]]]}), "cannot be read"),
        (raw({"name": "x", "facts": [], "arrays": []}), "no facts"),
        (raw({"name": "x", "facts": {}, "arrays": [["<i4", [-1]]]}), "impossible"),
        (raw({"name": "x", "facts": {}, "arrays": [["<i4", ["1"]]]}), "impossible"),
        (raw({"name": "x", "facts": {}, "arrays": [["<i4", [2]]]}, b"1234"), "8 bytes of arrays, and has 4"),
        (raw({"name": "x", "facts": {}, "arrays": [["<i4", [1 << 29, 1 << 29]]]}, b"1234"), "and has 4"),
    ],
)
def test_what_is_no_frame_is_refused(pair: Pair, data: bytes, said: str) -> None:
    pair[0].sendall(data)
    with pytest.raises(BadFrame, match=said):
        read_frame(pair[1])


def test_whoever_reads_says_how_much_it_takes(pair: Pair) -> None:
    write_frame(pair[0], Frame("x", arrays=(np.zeros(3, np.int32),)))
    with pytest.raises(BadFrame, match="too large"):
        read_frame(pair[1], most_array_bytes=11)


def test_the_end_between_frames_is_told_from_one_within(pair: Pair) -> None:
    whole = raw({"name": "x", "facts": {}, "arrays": []})
    pair[0].sendall(whole + whole[:-1])
    pair[0].close()
    assert read_frame(pair[1]).name == "x"
    with pytest.raises(ConnectionError):
        read_frame(pair[1])
    ends = socket.socketpair()
    ends[0].close()
    with ends[1], pytest.raises(Closed):
        read_frame(ends[1])
