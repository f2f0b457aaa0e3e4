"""The safetensors format: an 8-byte little-endian length, a JSON header of that many bytes, then the tensors' bytes.

A header is read with suspicion, since it comes with data: its length is bounded before anything is allocated, and the
tensors must tile the rest of the file exactly, without overlap, gap or overhang, as the format demands.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np

from engine.errors import UnsupportedCheckpoint
from engine.families.attributes import shown
from engine.families.documents import File, parse_object

LARGEST_HEADER_BYTES = 8 << 20  # fifty thousand tensors in one file
PIECE_NUMBERS = 1 << 20
"""Tensors are read in pieces of this many numbers, 4 MiB of float32: larger ones fall out of the processor's caches and
are slower."""

_MOST_AXES = 16
_LONGEST_AXIS = 1 << 48

_BITS = {
    **{"BOOL": 8, "U8": 8, "I8": 8, "U16": 16, "I16": 16, "U32": 32, "I32": 32, "U64": 64, "I64": 64},
    **{"F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8, "F4": 4},
    **{"F6_E2M3": 6, "F6_E3M2": 6, "F16": 16, "BF16": 16, "F32": 32, "F64": 64, "C64": 64},
}
NUMBERS = {
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
}
"""The dtypes that weights are read from; others may be in a file, but fill no parameter."""


@dataclass(frozen=True)
class StoredTensor:
    """Where a tensor's bytes lie."""

    name: str
    file: str
    dtype: str
    """The format's name: F32, BF16, ..."""
    shape: tuple[int, ...]
    start: int
    """Of its first byte in the file."""
    size_bytes: int

    @property
    def size(self) -> int:
        return math.prod(self.shape)


def read_header(file: File, path: str) -> list[StoredTensor]:
    """The tensors of a file, in the order of their bytes; `path` is kept and named in errors."""
    file_bytes = file.seek(0, os.SEEK_END)
    file.seek(0)
    prefix = file.read(8)
    if len(prefix) < 8:
        raise UnsupportedCheckpoint(f"{path} is no safetensors file: it has {file_bytes} bytes")
    header_bytes = int.from_bytes(prefix, "little")
    if header_bytes > LARGEST_HEADER_BYTES:
        raise UnsupportedCheckpoint(
            f"{path} is no safetensors file: its header would have {header_bytes} bytes, and at most "
            f"{LARGEST_HEADER_BYTES} are read"
        )
    if header_bytes > file_bytes - 8:
        raise UnsupportedCheckpoint(
            f"{path} is truncated: its header has {header_bytes} bytes and the file {file_bytes}; fetch it again"
        )
    header = parse_object(file.read(header_bytes), f"the header of {path}")
    header.pop("__metadata__", None)
    data_start = 8 + header_bytes
    tensors = [_stored_tensor(name, entry, path, data_start) for name, entry in header.items()]
    tensors.sort(key=lambda tensor: (tensor.start, tensor.size_bytes))
    _check_tiling(tensors, path, data_start, file_bytes)
    return tensors


def read_pieces(file: File, tensor: StoredTensor) -> Iterator[np.ndarray]:
    """The tensor's numbers in its own dtype, flat, PIECE_NUMBERS at a time."""
    for at in range(0, tensor.size, PIECE_NUMBERS):
        yield read_numbers(file, tensor, at, min(PIECE_NUMBERS, tensor.size - at))


def read_numbers(file: File, tensor: StoredTensor, first: int, count: int) -> np.ndarray:
    """Numbers that follow each other, flat, in the tensor's own dtype."""
    dtype = NUMBERS[tensor.dtype]
    file.seek(tensor.start + first * dtype.itemsize)
    return np.frombuffer(_read_exactly(file, count * dtype.itemsize, tensor), dtype)


def read_sample(file: File, tensor: StoredTensor, sample_bytes: int) -> bytes:
    """The bytes in the middle of a tensor, all of them if there are fewer."""
    sample_bytes = min(sample_bytes, tensor.size_bytes)
    file.seek(tensor.start + (tensor.size_bytes - sample_bytes) // 2)
    return _read_exactly(file, sample_bytes, tensor)


def _read_exactly(file: File, count: int, tensor: StoredTensor) -> bytes:
    data = file.read(count)
    while len(data) < count:
        more = file.read(count - len(data))
        if not more:
            raise UnsupportedCheckpoint(f"{tensor.file} ends in the middle of {tensor.name}; fetch it again")
        data += more
    return data


def _stored_tensor(name: str, entry: Any, path: str, data_start: int) -> StoredTensor:
    where = f"the header of {path}: {name[:120]}"
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise UnsupportedCheckpoint(f"{where} must have dtype, shape and data_offsets; it is {shown(entry)}")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in _BITS:
        raise UnsupportedCheckpoint(f"{where} has an unknown dtype, {shown(dtype)}")
    if not _are_sizes(shape) or len(shape) > _MOST_AXES:
        raise UnsupportedCheckpoint(f"{where} has an impossible shape, {shown(shape)}")
    if not _are_sizes(offsets) or len(offsets) != 2:
        raise UnsupportedCheckpoint(f"{where} has impossible data_offsets, {shown(offsets)}")
    begin, end = offsets
    if (end - begin) * 8 != math.prod(shape) * _BITS[dtype]:
        raise UnsupportedCheckpoint(f"{where} has {end - begin} bytes, which is not the size of {dtype}{shape}")
    return StoredTensor(name, path, dtype, tuple(shape), data_start + begin, end - begin)


def _are_sizes(value: Any) -> bool:
    return isinstance(value, list) and all(type(size) is int and 0 <= size < _LONGEST_AXIS for size in value)


def _check_tiling(tensors: list[StoredTensor], path: str, data_start: int, file_bytes: int) -> None:
    end = data_start
    for tensor in tensors:
        if tensor.start != end:
            fault = "overlaps the tensor before it" if tensor.start < end else "does not follow the tensor before it"
            raise UnsupportedCheckpoint(f"{path}: {tensor.name[:120]} {fault}; the file is damaged")
        end += tensor.size_bytes
        if end > file_bytes:
            raise UnsupportedCheckpoint(
                f"{path} is truncated at byte {file_bytes}: {tensor.name[:120]} ends at byte {end}; fetch it again"
            )
    if end != file_bytes:
        raise UnsupportedCheckpoint(
            f"{path} goes on for {file_bytes - end} bytes after its last tensor; the file is damaged"
        )
