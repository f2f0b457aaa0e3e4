"""The safetensors format, against the published library and against files that mean harm."""

from __future__ import annotations

import io
import json
import tracemalloc
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from engine.errors import UnsupportedCheckpoint
from engine.weights import safetensors as ours
from engine.weights.safetensors import LARGEST_HEADER_BYTES, NUMBERS, read_header, read_pieces, read_sample

library = pytest.importorskip("safetensors", reason="the published reader and writer of the format")
library_numpy = pytest.importorskip("safetensors.numpy")

TENSORS = {
    "b.weight": np.arange(24, dtype=np.float32).reshape(2, 3, 4),
    "a": np.linspace(-1, 1, 7).astype(np.float16),
    "scalar": np.array(3.5, np.float32),
    "empty": np.zeros((0, 5), np.float32),
    "c": np.linspace(-3, 3, 10).astype(ml_dtypes.bfloat16).reshape(5, 2),
    "ids": np.arange(4, dtype=np.int64),
}


def whole(header: Any, data: bytes = b"", pad: int = 0) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) + pad).to_bytes(8, "little") + text + b" " * pad + data


def read(data: bytes) -> list[ours.StoredTensor]:
    return read_header(io.BytesIO(data), "some.safetensors")


def test_reads_what_the_library_writes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = tmp_path / "all.safetensors"
    library_numpy.save_file(TENSORS, str(path), metadata={"format": "pt"})
    monkeypatch.setattr(ours, "PIECE_NUMBERS", 5)
    with open(path, "rb") as file:
        stored = {tensor.name: tensor for tensor in read_header(file, str(path))}
        assert {name: tensor.shape for name, tensor in stored.items()} == {n: t.shape for n, t in TENSORS.items()}
        assert stored["ids"].dtype == "I64"
        for name in TENSORS.keys() - {"ids"}:
            pieces = list(read_pieces(file, stored[name]))
            assert all(piece.size <= 5 and piece.dtype == TENSORS[name].dtype for piece in pieces)
            read_back = np.concatenate(pieces) if pieces else np.zeros(0, np.float32)
            np.testing.assert_array_equal(read_back, TENSORS[name].reshape(-1))


def test_a_sample_is_the_middle() -> None:
    data = whole({"x": {"dtype": "U8", "shape": [10], "data_offsets": [0, 10]}}, bytes(range(10)))
    (tensor,) = read(data)
    assert read_sample(io.BytesIO(data), tensor, 4) == bytes([3, 4, 5, 6])
    assert read_sample(io.BytesIO(data), tensor, 99) == bytes(range(10))


def test_a_file_that_got_shorter_is_named_with_its_tensor() -> None:
    data = whole({"x": {"dtype": "F32", "shape": [10], "data_offsets": [0, 40]}}, bytes(40))
    (tensor,) = read(data)
    with pytest.raises(UnsupportedCheckpoint, match=r"some.safetensors ends in the middle of x"):
        list(read_pieces(io.BytesIO(data[:-1]), tensor))


def test_short_reads_are_continued() -> None:
    class Trickle(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            return super().read(min(size or 0, 3))

    data = whole({"x": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}, np.arange(4, dtype="f4").tobytes())
    (tensor,) = read(data)
    np.testing.assert_array_equal(np.concatenate(list(read_pieces(Trickle(data), tensor))), np.arange(4, dtype="f4"))


F32 = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "is no safetensors file: it has 0 bytes"),
        (b"\x02\0\0\0\0\0\0", "is no safetensors file: it has 7 bytes"),
        (b"\xff" * 8 + b"{}", "its header would have 18446744073709551615 bytes"),
        (b"\x80\x02\x8a\nlF\xfc" + bytes(100), "is no safetensors file"),  # a pickle
        ((LARGEST_HEADER_BYTES + 1).to_bytes(8, "little") + b"{}", "its header would have"),
        ((100).to_bytes(8, "little") + b"{}", "is truncated"),
        (whole(b"[]"), "must be a JSON object"),
        (whole(b"\xff\xff"), "is not valid JSON"),
        (whole(b'{"x":' * 100_000), "is not valid JSON"),
        (whole(b'{"x":1,"x":1}'), "'x' occurs twice"),
        (whole({"x": 3}), "x must have dtype, shape and data_offsets; it is 3"),
        (whole({"x": {"dtype": "F32", "shape": [2]}}), "must have dtype"),
        (whole({"x": F32 | {"extra": 1}}, bytes(8)), "must have dtype"),
        (whole({"x": F32 | {"dtype": "F33"}}, bytes(8)), "unknown dtype, 'F33'"),
        (whole({"x": F32 | {"dtype": ["F32"]}}, bytes(8)), "unknown dtype"),
        (whole({"x": F32 | {"shape": [-2]}}, bytes(8)), "impossible shape"),
        (whole({"x": F32 | {"shape": [True, 2]}}, bytes(8)), "impossible shape"),
        (whole({"x": F32 | {"shape": [2.0]}}, bytes(8)), "impossible shape"),
        (whole({"x": F32 | {"shape": [10**100, 0]}}, bytes(8)), "impossible shape"),
        (whole({"x": F32 | {"shape": [1] * 17}}, bytes(8)), "impossible shape"),
        (whole({"x": F32 | {"shape": 2}}, bytes(8)), "impossible shape"),
        (whole({"x": F32 | {"data_offsets": [0]}}, bytes(8)), "impossible data_offsets"),
        (whole({"x": F32 | {"data_offsets": [-8, 0]}}, bytes(8)), "impossible data_offsets"),
        (whole({"x": F32 | {"data_offsets": [8, 0]}}, bytes(8)), "x has -8 bytes, which is not the size of F32[2]"),
        (whole({"x": F32 | {"shape": [3]}}, bytes(8)), "x has 8 bytes, which is not the size of F32[3]"),
        (whole({"x": F32, "y": F32}, bytes(16)), "overlaps the tensor before it"),
        (whole({"x": F32, "y": F32 | {"data_offsets": [12, 20]}}, bytes(20)), "y does not follow the tensor before it"),
        (whole({"x": F32 | {"data_offsets": [4, 12]}}, bytes(12)), "x does not follow"),
        (
            whole({"x": F32, "y": F32 | {"data_offsets": [8, 16]}}, bytes(15)),
            "is truncated at byte 146: y ends at byte 147",
        ),
        (whole({"x": F32}, bytes(9)), "goes on for 1 bytes after its last tensor"),
    ],
)
def test_damaged_and_hostile_files_are_refused(data: bytes, said: str) -> None:
    with pytest.raises(UnsupportedCheckpoint) as refused:
        read(data)
    assert said in str(refused.value)
    assert "some.safetensors" in str(refused.value)
    assert len(str(refused.value)) < 500


def accepted_by_the_library(data: bytes) -> dict[str, tuple[str, tuple[int, ...]]] | None:
    try:
        read_back = library.deserialize(data)
    except library.SafetensorError:
        return None
    return {name: (entry["dtype"], tuple(entry["shape"])) for name, entry in read_back}


def accepted_here(data: bytes) -> dict[str, tuple[str, tuple[int, ...]]] | None:
    try:
        tensors = read(data)
    except UnsupportedCheckpoint:
        return None
    at = 8 + int.from_bytes(data[:8], "little")
    for tensor in tensors:  # whatever is accepted lies in the file and tiles it
        assert tensor.start == at
        at += tensor.size_bytes
    assert at == len(data)
    return {tensor.name: (tensor.dtype, tensor.shape) for tensor in tensors}


ENTRY = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(["F32", "F16", "BF16", "I8"]),
        "shape": st.lists(st.integers(0, 3), max_size=3),
        "data_offsets": st.lists(st.integers(0, 24), min_size=2, max_size=2),
    }
)


@settings(deadline=None)
@given(st.dictionaries(st.sampled_from("abcd"), ENTRY, max_size=3), st.integers(0, 40), st.integers(0, 9))
def test_a_header_is_accepted_exactly_where_the_library_accepts_it(header: dict, data_bytes: int, pad: int) -> None:
    data = whole(header, bytes(data_bytes), pad)
    assert accepted_here(data) == accepted_by_the_library(data)


@st.composite
def tiled(draw: st.DrawFn) -> tuple[dict[str, Any], int]:
    """A header whose tensors do tile their data, in any order of names."""
    header, at = {}, 0
    for name in draw(st.permutations("abcd")):
        dtype, shape = draw(st.sampled_from(sorted(NUMBERS))), draw(st.lists(st.integers(0, 3), max_size=3))
        size = int(np.prod(shape, dtype=int)) * NUMBERS[dtype].itemsize
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + size]}
        at += size
    return {name: header[name] for name in draw(st.permutations(sorted(header)))}, at


@settings(deadline=None)
@given(tiled())
def test_tensors_that_tile_their_file_are_accepted(made: tuple[dict[str, Any], int]) -> None:
    header, data_bytes = made
    data = whole(header, bytes(data_bytes))
    accepted = accepted_here(data)
    assert accepted is not None
    assert {name: shape for name, (_, shape) in accepted.items()} == {n: tuple(e["shape"]) for n, e in header.items()}
    assert accepted == accepted_by_the_library(data)


VALID = library_numpy.save({"x": np.zeros((2, 3), np.float32), "y": np.zeros(4, np.float16)}, {"format": "pt"})


@settings(deadline=None)
@given(st.integers(0, len(VALID) - 1), st.binary(max_size=8), st.integers(0, len(VALID)))
@example(0, b"", 0)
def test_a_damaged_file_is_refused_or_still_makes_sense(at: int, patch: bytes, length: int) -> None:
    accepted_here((VALID[:at] + patch + VALID[at + len(patch) :])[: length or None])


@settings(deadline=None)
@given(st.binary(max_size=200))
def test_noise_is_refused_in_words(noise: bytes) -> None:
    accepted_here(noise)
    accepted_here(whole(noise))


def test_a_hostile_header_takes_bounded_memory(tmp_path: Path) -> None:
    path = tmp_path / "hole.safetensors"
    with open(path, "wb") as file:
        file.write((1 << 40).to_bytes(8, "little") + b"{}")
        file.truncate(1 << 41)  # as large as the header claims, but a hole: takes no space
    tracemalloc.start()
    with open(path, "rb") as file, pytest.raises(UnsupportedCheckpoint, match="its header would have"):
        read_header(file, str(path))
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak_bytes < 1 << 20
