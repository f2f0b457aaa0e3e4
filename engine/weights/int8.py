"""int8 while loading: the numbers that `quantize` makes of a whole parameter, from its pieces.

A channel's scale comes from all its inputs, whichever of them a chip holds, so every mesh has the same numbers.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from engine.model.quantized import Quantized, quantize

__all__ = ["Quantized", "by_columns", "by_rows", "largest_of_columns"]

_BLOCK_NUMBERS = 1 << 16  # at a time: what is computed on the way stays in the processor's caches


def by_rows(numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of a matrix whose rows are channels, whole: int8 values, and scales as a column."""
    values, scale = np.empty(numbers.shape, np.int8), np.empty((len(numbers), 1), np.float32)
    for rows in _blocks(numbers):
        block = quantize(numbers[rows])
        values[rows], scale[rows, 0] = block.values, block.scale
    return values, scale


def largest_of_columns(numbers: np.ndarray) -> np.ndarray:
    """The largest magnitude of every column: not rounded, so of parts taken together in any order the same."""
    return np.stack([np.abs(numbers[rows].astype(np.float32)).max(0) for rows in _blocks(numbers)]).max(0)


def by_columns(numbers: np.ndarray, largest: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of some rows of a matrix whose columns are channels with these largest magnitudes; scales as a row."""
    values, scale = np.empty(numbers.shape, np.int8), np.empty((1, len(largest)), np.float32)
    for rows in _blocks(numbers):
        block = quantize(np.concatenate([numbers[rows].astype(np.float32), largest[None]]).T)
        values[rows], scale[0] = np.asarray(block.values)[:, :-1].T, block.scale
    return values, scale


def _blocks(numbers: np.ndarray) -> Iterator[slice]:
    rows_each = max(1, _BLOCK_NUMBERS // numbers.shape[1])
    for row in range(0, len(numbers), rows_each):
        yield slice(row, row + rows_each)
