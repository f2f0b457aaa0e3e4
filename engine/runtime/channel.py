"""Frames: what a leader and its followers send each other over TCP. A name, a few facts, and arrays.

    magic 4 bytes | header_bytes u32 | array_bytes u64 | header: JSON | arrays: raw bytes, one after the other

The header is {"name": ..., "facts": {...}, "arrays": [[dtype, [shape]], ...]}; arrays are little-endian and C-ordered.
What is received is checked before anything is allocated, and nothing in it is executed.
"""

from __future__ import annotations

import json
import math
import socket
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

MAGIC = b"PNS\x01"
LARGEST_HEADER_BYTES = 1 << 20
LARGEST_ARRAYS_BYTES = 1 << 30

_PREFIX = struct.Struct("<4sIQ")
_DTYPES = {np.dtype(kind).str: np.dtype(kind) for kind in (np.bool_, np.int32, np.uint32, np.float32)}


class BadFrame(Exception):
    """What came is no frame of ours, or too large."""


class Closed(Exception):
    """The other end closed the connection between two frames."""


@dataclass(frozen=True)
class Frame:
    name: str
    facts: Mapping[str, Any] = field(default_factory=dict)
    """Anything JSON can say."""
    arrays: Sequence[np.ndarray] = ()
    """Of bool, int32, uint32 or float32. Those received cannot be written to."""


def write_frame(to: socket.socket, frame: Frame) -> None:
    arrays = [np.ascontiguousarray(array).reshape(array.shape) for array in frame.arrays]
    described = [[array.dtype.str, list(array.shape)] for array in arrays]
    assert all(dtype in _DTYPES for dtype, _ in described), f"{frame.name} has arrays of {described}"
    header = json.dumps({"name": frame.name, "facts": frame.facts, "arrays": described}).encode()
    size = sum(array.nbytes for array in arrays)
    assert len(header) <= LARGEST_HEADER_BYTES, f"{frame.name} has a header of {len(header)} bytes"
    assert size <= LARGEST_ARRAYS_BYTES, f"{frame.name} has {size} bytes of arrays"
    to.sendall(b"".join([_PREFIX.pack(MAGIC, len(header), size), header, *(array.tobytes() for array in arrays)]))


def read_frame(source: socket.socket, most_array_bytes: int = LARGEST_ARRAYS_BYTES) -> Frame:
    """The next frame. Raises Closed, BadFrame, or what the socket raises: a timeout, a reset."""
    magic, header_bytes, array_bytes = _PREFIX.unpack(_read(source, _PREFIX.size, first=True))
    if magic != MAGIC:
        raise BadFrame(f"it does not speak Penstock's protocol, it began with {magic!r}")
    if header_bytes > LARGEST_HEADER_BYTES or array_bytes > most_array_bytes:
        raise BadFrame(f"a frame of {header_bytes} + {array_bytes} bytes is too large")
    name, facts, described = _header(_read(source, header_bytes))
    sizes = [math.prod(shape) * dtype.itemsize for dtype, shape in described]
    if sum(sizes) != array_bytes:
        raise BadFrame(f"{name} says it has {sum(sizes)} bytes of arrays, and has {array_bytes}")
    data = _read(source, array_bytes)
    arrays, start = [], 0
    for (dtype, shape), size in zip(described, sizes, strict=True):
        arrays.append(np.frombuffer(data, dtype, math.prod(shape), start).reshape(shape))
        start += size
    return Frame(name, facts, arrays)


def _header(data: bytes) -> tuple[str, dict[str, Any], list[tuple[np.dtype, tuple[int, ...]]]]:
    try:
        header = json.loads(data)
        name, facts, arrays = header["name"], header["facts"], header["arrays"]
        described = [(_DTYPES[dtype], tuple(shape)) for dtype, shape in arrays]
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise BadFrame(f"a header cannot be read: {type(error).__name__}: {error}") from error
    dimensions = [size for _, shape in described for size in shape]
    if not (isinstance(name, str) and isinstance(facts, dict)):
        raise BadFrame("a header has no name or no facts")
    if not all(type(size) is int and 0 <= size <= LARGEST_ARRAYS_BYTES for size in dimensions):
        raise BadFrame(f"{name} has arrays of an impossible shape")
    return name, facts, described


def _read(source: socket.socket, size: int, first: bool = False) -> bytes:
    """Exactly `size` bytes; memory is taken as they come."""
    data = bytearray()
    while len(data) < size:
        piece = source.recv(min(size - len(data), 1 << 20))
        if not piece and first and not data:
            raise Closed
        if not piece:
            raise ConnectionError(f"closed after {len(data)} of {size} bytes")
        data += piece
    return bytes(data)
