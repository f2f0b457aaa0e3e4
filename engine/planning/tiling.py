"""How many bytes an array takes in a TPU's memory, where its last two dimensions are held in tiles.

A tile is 8 rows of 128 numbers, or 1, 2 or 4 rows where there are no more; numbers smaller than four bytes stand in
pairs or fours, one above the other, so fewer rows than that are filled up. For arguments and results the compiler
chooses which dimensions are the last two such that least is lost (found by compiling one array after the other with
libtpu 0.0.42.1; tests/engine/planning/test_tiling.py has its answers).
"""

from __future__ import annotations

import itertools
import math
from functools import lru_cache

LANES, SUBLANES = 128, 8


@lru_cache(maxsize=65_536)
def compact_bytes(shape: tuple[int, ...], item_bytes: int | float) -> int:
    """Of an argument or a result of a program."""
    if len(shape) < 2:
        return int(math.prod(_vector(size, item_bytes) for size in shape) * item_bytes) if shape else SUBLANES * 64
    choices = itertools.permutations(range(len(shape)), 2)
    return int(min(_tiled(shape, rows, lanes, item_bytes) for rows, lanes in choices) * item_bytes)


@lru_cache(maxsize=65_536)
def tiled_bytes(shape: tuple[int, ...], item_bytes: int | float) -> int:
    """Of an array inside a program: as it is written, the last dimension minor."""
    if len(shape) < 2:
        return compact_bytes(shape, item_bytes)
    return int(_tiled(shape, len(shape) - 2, len(shape) - 1, item_bytes) * item_bytes)


def _tiled(shape: tuple[int, ...], rows: int, lanes: int, item_bytes: int | float) -> int:
    others = math.prod(size for dim, size in enumerate(shape) if dim not in (rows, lanes))
    return others * _rows(shape[rows], item_bytes) * _up_to(shape[lanes], LANES)


def _rows(size: int, item_bytes: int | float) -> int:
    packed = int(4 / item_bytes)
    if size <= SUBLANES // 2:
        return max(packed, 1 << (size - 1).bit_length())
    return _up_to(size, SUBLANES)


def _vector(size: int, item_bytes: int | float) -> int:
    return _up_to(size, LANES * int(4 / item_bytes) if size < 8 * LANES else 8 * LANES)


def _up_to(size: int, multiple: int) -> int:
    return -(-size // multiple) * multiple
