"""Which bytes are read of a stored matrix, and in what pieces, so that every wanted rectangle is there once."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from engine.errors import UnsupportedCheckpoint
from engine.families.documents import File
from engine.weights.safetensors import NUMBERS, StoredTensor, read_numbers

STRETCH_BYTES = 32 << 20
"""What one reader reads without pause: long, so that a file's read-ahead is not wasted."""

_EXPONENT = {"F32": (np.uint32, 0x7F800000), "F16": (np.uint16, 0x7C00), "BF16": (np.uint16, 0x7F80)}
_CHECKED_NUMBERS = 1 << 16  # at a time: what is compared stays in the processor's caches

Range = tuple[int, int]
"""From and to."""


@dataclass(frozen=True)
class Matrix:
    """A stored tensor, or one of the matrices that lie in it one after the other."""

    tensor: StoredTensor
    first: int
    """Where its first number is in the tensor."""
    rows: int
    columns: int


@dataclass(frozen=True)
class Rectangle:
    rows: Range
    columns: Range

    @property
    def size(self) -> int:
        return (self.rows[1] - self.rows[0]) * (self.columns[1] - self.columns[0])


@dataclass(frozen=True)
class Band:
    """Rows of which the same is read."""

    rows: Range
    spans: tuple[Range, ...]
    """Of columns."""

    @property
    def size(self) -> int:
        return (self.rows[1] - self.rows[0]) * sum(stop - start for start, stop in self.spans)


def bands(matrix: Matrix, wanted: Sequence[Rectangle], skipped_bytes: int) -> list[Band]:
    """What is read, in the order of the file. Rows that nobody wants are not.

    Args:
      skipped_bytes: the narrowest gap in a row that is not read over.
    """
    edges = sorted({edge for rectangle in wanted for edge in rectangle.rows})
    found: list[Band] = []
    for rows in pairwise(edges):
        columns = [one.columns for one in wanted if one.rows[0] <= rows[0] and rows[1] <= one.rows[1]]
        spans = _spans(matrix, columns, skipped_bytes)
        if found and found[-1].rows[1] == rows[0] and found[-1].spans == spans:
            rows = (found.pop().rows[0], rows[1])  # pieces need not end where a chip's rows do
        if spans:
            found.append(Band(rows, spans))
    return found


def pieces(bands: Iterable[Band], most: int) -> Iterator[Rectangle]:
    """The same in pieces of at most so many numbers."""
    for band in bands:
        rows_each = max(1, most // max(stop - start for start, stop in band.spans))
        for row in range(*band.rows, rows_each):
            for start, stop in band.spans:
                for column in range(start, stop, most):
                    yield Rectangle((row, min(row + rows_each, band.rows[1])), (column, min(column + most, stop)))


def stretches(matrix: Matrix, cut: Iterable[Rectangle]) -> Iterator[list[Rectangle]]:
    """Pieces in runs of about STRETCH_BYTES."""
    bytes_each = NUMBERS[matrix.tensor.dtype].itemsize
    stretch: list[Rectangle] = []
    size_bytes = 0
    for piece in cut:
        stretch.append(piece)
        size_bytes += piece.size * bytes_each
        if size_bytes >= STRETCH_BYTES:
            yield stretch
            stretch, size_bytes = [], 0
    if stretch:
        yield stretch


def read(file: File, matrix: Matrix, piece: Rectangle) -> np.ndarray:
    """The numbers of a piece, all finite, in their own dtype."""
    (row, end), (start, stop) = piece.rows, piece.columns
    width = stop - start
    if width == matrix.columns or end - row == 1:
        runs = [(matrix.first + row * matrix.columns + start, piece.size)]
    else:
        runs = [(matrix.first + at * matrix.columns + start, width) for at in range(row, end)]
    parts = [read_numbers(file, matrix.tensor, first, count) for first, count in runs]
    numbers = parts[0] if len(parts) == 1 else np.concatenate(parts)
    check_finite(numbers, matrix.tensor)
    return numbers.reshape(end - row, width)


def check_finite(numbers: np.ndarray, tensor: StoredTensor) -> None:
    """By the bits: a number whose exponent is all ones is infinite or NaN (numpy is slow to say so of bfloat16)."""
    unsigned, exponent = _EXPONENT[tensor.dtype]
    bits = numbers.view(unsigned)
    for at in range(0, bits.size, _CHECKED_NUMBERS):
        if ((bits[at : at + _CHECKED_NUMBERS] & exponent) == exponent).any():
            raise UnsupportedCheckpoint(
                f"{tensor.name} in {tensor.file} holds NaN or infinity: the file is damaged, or its training diverged"
            )


def _spans(matrix: Matrix, wanted: Sequence[Range], skipped_bytes: int) -> tuple[Range, ...]:
    """The ranges of columns that are read to have the wanted ones."""
    least = max(1, skipped_bytes // NUMBERS[matrix.tensor.dtype].itemsize)
    spans: list[Range] = []
    for start, stop in sorted(wanted):
        if spans and start - spans[-1][1] < least:
            spans[-1] = (spans[-1][0], max(stop, spans[-1][1]))
        else:
            spans.append((start, stop))
    if len(spans) == 1 and matrix.columns - (spans[0][1] - spans[0][0]) < least:  # from one row to the next
        return ((0, matrix.columns),)
    return tuple(spans)
