"""What is read of a matrix: all that is wanted, nothing twice, in bounded pieces, and little else."""

from __future__ import annotations

import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.errors import UnsupportedCheckpoint
from engine.weights import reading
from engine.weights.reading import Matrix, Rectangle, bands, pieces, read, stretches
from engine.weights.safetensors import StoredTensor

ROWS, COLUMNS, FIRST = 12, 10, 7
TENSOR = StoredTensor("some", "a.safetensors", "F32", (3, 99), 4, 4 * 297)
MATRIX = Matrix(TENSOR, FIRST, ROWS, COLUMNS)
DATA = np.arange(FIRST + ROWS * COLUMNS, dtype=np.float32)
FILE = b"head" + DATA.tobytes()
MATRIX_NUMBERS = DATA[FIRST:].reshape(ROWS, COLUMNS)


def ranges(size: int) -> st.SearchStrategy[tuple[int, int]]:
    return st.tuples(st.integers(0, size - 1), st.integers(1, size)).filter(lambda pair: pair[0] < pair[1])


WANTED = st.lists(st.builds(Rectangle, ranges(ROWS), ranges(COLUMNS)), max_size=6)


class Requests(io.BytesIO):
    """Remembers what was read."""

    def __init__(self) -> None:
        super().__init__(FILE)
        self.made: list[tuple[int, int]] = []

    def read(self, size: int | None = -1, /) -> bytes:
        self.made.append((self.tell(), size or 0))
        return super().read(size)


@given(WANTED, st.integers(1, 150), st.sampled_from([0, 4, 12, 1 << 20]))
def test_everything_wanted_is_read_once_and_forwards(
    wanted: list[Rectangle], piece_numbers: int, skipped_bytes: int
) -> None:
    needed = np.zeros((ROWS, COLUMNS), bool)
    for one in wanted:
        needed[slice(*one.rows), slice(*one.columns)] = True
    times_read = np.zeros((ROWS, COLUMNS), int)
    file = Requests()
    for piece in pieces(bands(MATRIX, wanted, skipped_bytes), piece_numbers):
        assert 0 < piece.size <= piece_numbers
        numbers = read(file, MATRIX, piece)
        times_read[slice(*piece.rows), slice(*piece.columns)] += 1
        np.testing.assert_array_equal(numbers, MATRIX_NUMBERS[slice(*piece.rows), slice(*piece.columns)])
    assert (times_read[needed] == 1).all()
    assert times_read.max() <= 1
    assert not times_read[~needed.any(1)].any()  # rows nobody wants
    assert sum(size for _, size in file.made) == 4 * times_read.sum()
    assert sum(band.size for band in bands(MATRIX, wanted, skipped_bytes)) == times_read.sum()
    if skipped_bytes <= 4:  # no gap is narrower
        assert times_read.sum() == needed.sum()
    if skipped_bytes > 4 * COLUMNS:
        assert (times_read.any(1) == times_read.all(1)).all()  # whole rows
        assert [at for at, _ in file.made] == sorted(at for at, _ in file.made)


@pytest.mark.parametrize(
    ("wanted", "requests"),
    [
        ([((0, 12), (0, 10))], 1),
        ([((0, 4), (0, 10)), ((4, 12), (0, 10))], 1),  # neighbours: in one go
        ([((0, 12), (0, 5)), ((0, 12), (5, 10))], 1),  # the halves of every row too
        ([((0, 12), (0, 5)), ((0, 12), (0, 5))], 12),
        ([((0, 3), (0, 10)), ((9, 12), (0, 10))], 2),
        ([((2, 3), (4, 7))], 1),
        ([((0, 12), (0, 2)), ((0, 12), (8, 10))], 24),
    ],
)
def test_what_lies_together_is_one_request(
    wanted: list[tuple[tuple[int, int], tuple[int, int]]], requests: int
) -> None:
    file = Requests()
    for piece in pieces(bands(MATRIX, [Rectangle(rows, columns) for rows, columns in wanted], 0), 1000):
        read(file, MATRIX, piece)
    assert len(file.made) == requests


def test_a_gap_is_read_over_unless_it_is_wide() -> None:
    wanted = [Rectangle((0, 12), (0, 2)), Rectangle((0, 12), (8, 10))]  # six numbers, 24 bytes, between
    for skipped_bytes, requests in ((24, 24), (28, 1)):
        file = Requests()
        for piece in pieces(bands(MATRIX, wanted, skipped_bytes), 1000):
            read(file, MATRIX, piece)
        assert len(file.made) == requests


def test_stretches_keep_the_order_and_are_of_the_size_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "STRETCH_BYTES", 4 * COLUMNS * 5)
    cut = list(pieces(bands(MATRIX, [Rectangle((0, 12), (0, 10))], 0), COLUMNS))
    found = list(stretches(MATRIX, cut))
    assert [len(stretch) for stretch in found] == [5, 5, 2]
    assert [piece for stretch in found for piece in stretch] == cut
    assert list(stretches(MATRIX, [])) == []


@pytest.mark.parametrize("at", [0, 4, ROWS * COLUMNS - 1])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_number_that_is_none_is_found_wherever_it_is(monkeypatch: pytest.MonkeyPatch, at: int, value: float) -> None:
    monkeypatch.setattr(reading, "_CHECKED_NUMBERS", 3)
    spoilt = DATA.copy()
    spoilt[FIRST + at] = value
    with pytest.raises(UnsupportedCheckpoint, match=r"some in a\.safetensors holds NaN or infinity"):
        read(io.BytesIO(b"head" + spoilt.tobytes()), MATRIX, Rectangle((0, ROWS), (0, COLUMNS)))
