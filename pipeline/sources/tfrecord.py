"""TFRecord framing: length, checksum of the length, data, checksum of the data, again and again.

The checksums are CRC-32C, rotated and offset ("masked") as TensorFlow's record_writer.h defines it. Data that
does not match its checksum is one bad record; a length that does not is the end of what can be read.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import BinaryIO

import google_crc32c

from pipeline import storage
from pipeline.errors import InputError
from pipeline.sources.base import changed_since_plan

_MASK_DELTA = 0xA282EAD8
_HEADER = struct.Struct("<QI")
_CHECKSUM = struct.Struct("<I")


def read_tfrecords(url: str, start: int, stop: int) -> Iterator[bytes | None]:
    """Records `start` to `stop` of a file; None for one whose data is damaged. What lies before is skipped."""
    with storage.open_input(url) as stream:
        size_bytes = stream.seek(0, 2)
        stream.seek(0)
        for number in range(stop):
            data_bytes = _read_length(url, stream, size_bytes, number, stop)
            if number < start:
                stream.seek(data_bytes + _CHECKSUM.size, 1)
                continue
            data = stream.read(data_bytes)
            (checksum,) = _CHECKSUM.unpack(stream.read(_CHECKSUM.size))
            yield data if masked_crc32c(data) == checksum else None


def masked_crc32c(data: bytes) -> int:
    crc = google_crc32c.value(data)
    return (((crc >> 15) | (crc << 17)) + _MASK_DELTA) & 0xFFFFFFFF


def _read_length(url: str, stream: BinaryIO, size_bytes: int, number: int, stop: int) -> int:
    """The length of the record that begins here, all of which lies within the file."""
    at = stream.tell()
    if at == size_bytes:
        raise changed_since_plan(url, f"it has {number} records instead of {stop} or more")
    header = stream.read(_HEADER.size)
    if len(header) == _HEADER.size:
        data_bytes, checksum = _HEADER.unpack(header)
        if masked_crc32c(header[:8]) != checksum:
            raise InputError(
                f"{url} is not a TFRecord file, or damaged at byte {at} (record {number}); prepare it again"
            )
        if stream.tell() + data_bytes + _CHECKSUM.size <= size_bytes:
            return data_bytes
    raise InputError(f"{url} is cut short at byte {at}, in record {number} of {stop} or more; prepare it again")
