"""TFRecord framing, against a writer with a checksum of its own, computed bit by bit."""

import base64
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import InputError
from pipeline.sources.tfrecord import masked_crc32c, read_tfrecords

from .reading import in_memory


def crc32c(data: bytes) -> int:
    """RFC 3720, appendix B.4: the reflected polynomial 0x1EDC6F41, one bit at a time."""
    crc = 0xFFFFFFFF
    for octet in data:
        crc ^= octet
        for _ in range(8):
            crc = (crc >> 1) ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def framed(records: list[bytes]) -> bytes:
    def masked(data: bytes) -> bytes:
        crc = crc32c(data)
        return struct.pack("<I", (((crc >> 15) | (crc << 17 & 0xFFFFFFFF)) + 0xA282EAD8) & 0xFFFFFFFF)

    lengths = [struct.pack("<Q", len(record)) for record in records]
    return b"".join(
        length + masked(length) + record + masked(record) for length, record in zip(lengths, records, strict=True)
    )


def test_checksums_of_the_standard():
    assert crc32c(b"123456789") == 0xE3069283
    assert crc32c(bytes(32)) == 0x8A9136AA  # RFC 3720, appendix B.4
    assert masked_crc32c(bytes(32)) == 0x0FD7FFFA


def test_a_record_that_tensorflow_wrote():
    foo = base64.b64decode("AwAAAAAAAACwmUkOZm9vYYq+/g==")
    assert framed([b"foo"]) == foo
    assert list(read_tfrecords(in_memory(foo, ""), 0, 1)) == [b"foo"]


@given(records=st.lists(st.binary(max_size=30), max_size=6), data=st.data())
def test_any_range_of_records_comes_back(records, data):
    start = data.draw(st.integers(0, len(records)))
    stop = data.draw(st.integers(start, len(records)))
    assert list(read_tfrecords(in_memory(framed(records), ""), start, stop)) == records[start:stop]


def test_damaged_data_is_one_bad_record():
    data = framed([b"first", b"second", b"third"]).replace(b"second", b"sEcond")
    assert list(read_tfrecords(in_memory(data, ""), 0, 3)) == [b"first", None, b"third"]


@pytest.mark.parametrize("cut", range(64))
def test_a_file_that_is_cut_gives_whole_records_and_then_an_error(cut):
    data = framed([b"first", b"second", b"third"])
    assert len(data) == 64
    found = []
    with pytest.raises(InputError, match=r"is cut short at byte|has changed since the work plan was made"):
        found.extend(read_tfrecords(in_memory(data[:cut], ""), 0, 3))
    assert found == [b"first", b"second"][: (cut >= 21) + (cut >= 43)]


@pytest.mark.parametrize("number", [0, 1, 2])
def test_a_damaged_length_is_an_error_that_says_where(number):
    data = bytearray(framed([b"first", b"second", b"third"]))
    at = [0, 21, 43][number]
    data[at + 5] ^= 1
    url = in_memory(bytes(data), "")
    with pytest.raises(InputError, match=rf"{url} is not a TFRecord file, or damaged at byte {at} \(record {number}\)"):
        list(read_tfrecords(url, 2, 3))


def test_a_length_beyond_the_file_is_not_allocated():
    length = struct.pack("<Q", 2**60)
    data = length + struct.pack("<I", masked_crc32c(length)) + b"data"
    with pytest.raises(InputError, match="is cut short at byte 0, in record 0"):
        list(read_tfrecords(in_memory(data, ""), 0, 1))
