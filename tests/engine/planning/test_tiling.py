"""Sizes of arrays in a TPU's memory, against what the TPU compiler (v4, v5e) gave as the size of such an argument."""

from __future__ import annotations

import pytest

from engine.planning.tiling import compact_bytes, tiled_bytes

# Shape, bytes of one number -> how many times its own size the compiler gives it.
MEASURED = [
    ((100, 1, 128), 4, 1.0),
    ((100, 2, 128), 4, 1.0),
    ((100, 3, 128), 4, 1.04),
    ((100, 4, 128), 4, 1.0),
    ((100, 5, 128), 4, 1.04),
    ((100, 12, 128), 4, 1.04),
    ((100, 8, 64), 4, 1.28),
    ((100, 8, 160), 4, 1.28),
    ((100, 130), 4, 1.339),
    ((3, 5), 4, 34.133),
    ((1000,), 4, 1.024),
    ((7,), 4, 18.286),
    ((100, 1, 128, 64), 4, 1.0),
    ((5, 7, 200), 4, 1.463),
    ((100, 1, 128), 2, 1.04),
    ((100, 2, 128), 2, 1.0),
    ((100, 4, 128), 2, 1.0),
    ((3, 5), 2, 34.133),
    ((7,), 2, 36.571),
    ((1000,), 2, 1.024),
    ((20, 16, 3, 256), 2, 1.0),
    ((100, 1, 128), 1, 1.04),
    ((100, 2, 128), 1, 1.04),
    ((100, 4, 128), 1, 1.0),
    ((100, 8, 128), 1, 1.0),
    ((100, 8, 160), 1, 1.28),
    ((7,), 1, 73.143),
    ((5, 7, 200), 1, 1.463),
]


@pytest.mark.parametrize(("shape", "item_bytes", "times"), MEASURED)
def test_an_argument_takes_what_the_compiler_gives_it(shape: tuple[int, ...], item_bytes: int, times: float) -> None:
    own = item_bytes
    for size in shape:
        own *= size
    assert compact_bytes(shape, item_bytes) / own == pytest.approx(times, abs=5e-4)


def test_inside_a_program_the_last_dimension_is_minor() -> None:
    assert tiled_bytes((2049, 2, 128, 160), 2) == 2049 * 2 * 128 * 256 * 2
    assert tiled_bytes((4096, 64), 4) == 4096 * 128 * 4
    assert tiled_bytes((4096, 18432), 2) == 4096 * 18432 * 2
