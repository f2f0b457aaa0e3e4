"""Fills the boxes of parameters from a stored matrix: reads a piece, and copies its rectangles to where they stand."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Literal

import numpy as np

from engine.errors import UnsupportedCheckpoint
from engine.families.family import Fill
from engine.layout import HeldSizes
from engine.model.config import ModelConfig
from engine.model.params import Parameter
from engine.weights import safetensors
from engine.weights.boxes import Box, Region, as_stored, box_shape, matrix_shape, regions
from engine.weights.destination import scale_of
from engine.weights.matching import Source
from engine.weights.readers import Readers
from engine.weights.reading import Band, Matrix, Rectangle, bands, pieces, read, stretches
from engine.weights.safetensors import NUMBERS, StoredTensor

Channels = Literal["rows", "columns"]
"""Where the inputs of one output lie in a matrix."""
Job = Callable[[Readers], int]
"""Reads and copies a part of a matrix; returns how many bytes were read."""


@dataclass(frozen=True)
class Filled:
    """A parameter as it is held here. `arrays` and `scales` are empty until they are allocated."""

    path: str
    parameter: Parameter
    """With its padding."""
    boxes: Sequence[Box]
    scale_boxes: Sequence[Box]
    """None unless it is quantised."""
    dtype: np.dtype
    padded: bool
    arrays: dict[Box, np.ndarray] = field(default_factory=dict)
    scales: dict[Box, np.ndarray] = field(default_factory=dict)

    @property
    def is_int8(self) -> bool:
        return self.dtype == np.int8

    @property
    def size_bytes(self) -> int:
        return sum(math.prod(box_shape(box)) * self.dtype.itemsize for box in self.boxes)

    def allocate(self) -> None:
        make = np.zeros if self.padded else np.empty
        self.arrays.update((box, make(box_shape(box), self.dtype)) for box in self.boxes)
        self.scales.update((box, np.ones(box_shape(box), np.float32)) for box in self.scale_boxes)


@dataclass(frozen=True)
class Aim:
    """A rectangle of a matrix, and the box it goes to."""

    region: Region
    fill: Fill
    box: Box
    arrays: Mapping[Box, np.ndarray]

    @property
    def rows(self) -> tuple[int, int]:
        return self.region.rows.stored, self.region.rows.stored + self.region.rows.size

    @property
    def columns(self) -> tuple[int, int]:
        return self.region.columns.stored, self.region.columns.stored + self.region.columns.size

    def target(self) -> np.ndarray:
        return self.region.of(as_stored(self.arrays[self.box], self.box, self.fill))


@dataclass(frozen=True)
class Filling:
    """A stored matrix and everything here that is filled from it."""

    matrix: Matrix
    aims: tuple[Aim, ...]
    scale_aims: tuple[Aim, ...] = ()
    """Each covers a column or a row, of which there is one."""
    channels: Channels | None = None
    """Of int8. None: the numbers are kept as they are."""
    copy: StoredTensor | None = None
    """Another tensor that must hold the same numbers."""
    skipped_bytes: int = 0
    """See `bands`."""

    @cached_property
    def bands(self) -> list[Band]:
        matrix, aims = self.matrix, (*self.aims, *self.scale_aims)
        if self.channels == "rows":  # a scale needs all its inputs
            wanted = [Rectangle(aim.rows, (0, matrix.columns)) for aim in aims]
        elif self.channels == "columns":
            wanted = [Rectangle((0, matrix.rows), aim.columns) for aim in aims]
        else:
            wanted = [Rectangle(aim.rows, aim.columns) for aim in aims]
        return bands(matrix, wanted, self.skipped_bytes)

    def pieces(self) -> Iterator[Rectangle]:
        whole_channel = self.matrix.columns if self.channels == "rows" else 0
        return pieces(self.bands, max(safetensors.PIECE_NUMBERS, whole_channel))

    @property
    def read_bytes(self) -> int:
        numbers = sum(band.size for band in self.bands)
        return numbers * NUMBERS[self.matrix.tensor.dtype].itemsize * (2 if self.channels == "columns" else 1)

    def jobs(self) -> Iterator[Job]:
        """Together they fill everything; they can run at the same time."""
        if self.channels == "columns":
            yield partial(_fill_int8_columns, filling=self)
            return
        fill = _fill_int8_rows if self.channels == "rows" else _fill
        for stretch in stretches(self.matrix, self.pieces()):
            yield partial(fill, filling=self, stretch=stretch)


def fillings(
    source: Source,
    filled: Mapping[str, Filled],
    config: ModelConfig,
    held: HeldSizes | None,
    copy: StoredTensor | None,
    skipped_bytes: int,
) -> Iterator[Filling]:
    """Of each matrix of a stored tensor, as far as it is wanted here."""
    tensor = source.tensor
    count, rows, columns = matrix_shape(tensor.shape)
    aims: dict[int, list[Aim]] = {at: [] for at in range(count)}
    scale_aims: dict[int, list[Aim]] = {at: [] for at in range(count)}
    kinds: list[Channels | None] = [_channels(fill) if filled[fill.path].is_int8 else None for fill in source.fills]
    assert len(set(kinds)) == 1, f"{tensor.name} is held quantised in part"
    for fill in source.fills:
        to = filled[fill.path]
        for box in to.boxes:
            for region in regions(fill, tensor.shape, box, config, held):
                aims[region.matrix].append(Aim(region, fill, box, to.arrays))
        for box in to.scale_boxes:
            scale_fill = _scale_fill(fill)
            for region in regions(scale_fill, tensor.shape, box, config, held):
                scale_aims[region.matrix].append(Aim(region, scale_fill, box, to.scales))
    for at in range(count):
        if aims[at] or scale_aims[at]:
            matrix = Matrix(tensor, at * rows * columns, rows, columns)
            yield Filling(matrix, tuple(aims[at]), tuple(scale_aims[at]), kinds[0], copy, skipped_bytes)


def _channels(fill: Fill) -> Channels:
    inputs = fill.parameter.axes[-fill.parameter.inputs :]
    if fill.stored[-1] == inputs:
        return "rows"
    assert fill.stored[-2] == inputs, f"{fill.path}: int8 of {fill.stored} is not implemented"
    return "columns"


def _scale_fill(fill: Fill) -> Fill:
    """What the tensor gives to the parameter's scales: its matrix with the inputs taken together."""
    inputs = fill.parameter.axes[-fill.parameter.inputs :]
    stored = tuple(() if merged == inputs else merged for merged in fill.stored)
    return replace(fill, parameter=scale_of(fill.parameter), stored=stored)


# The jobs.


def _fill(readers: Readers, filling: Filling, stretch: Iterable[Rectangle]) -> int:
    targets = _targets(filling.aims)
    return _read(readers, filling, stretch, lambda numbers, piece: _copy(numbers, piece, targets))


def _fill_int8_rows(readers: Readers, filling: Filling, stretch: Iterable[Rectangle]) -> int:
    from engine.weights.int8 import by_rows

    targets, scale_targets = _targets(filling.aims), _targets(filling.scale_aims)

    def take(numbers: np.ndarray, piece: Rectangle) -> None:
        values, scale = by_rows(numbers)
        _copy(values, piece, targets)
        _copy(scale, replace(piece, columns=(0, 1)), scale_targets)

    return _read(readers, filling, stretch, take)


def _fill_int8_columns(readers: Readers, filling: Filling) -> int:
    """Reads the matrix twice: a channel is known when its last row is."""
    from engine.weights.int8 import by_columns, largest_of_columns

    targets, scale_targets = _targets(filling.aims), _targets(filling.scale_aims)
    largest = np.zeros(filling.matrix.columns, np.float32)

    def look(numbers: np.ndarray, piece: Rectangle) -> None:
        seen = largest[slice(*piece.columns)]
        np.maximum(seen, largest_of_columns(numbers), out=seen)

    def take(numbers: np.ndarray, piece: Rectangle) -> None:
        values, scale = by_columns(numbers, largest[slice(*piece.columns)])
        _copy(values, piece, targets)
        _copy(scale, replace(piece, rows=(0, 1)), scale_targets)

    return _read(readers, filling, filling.pieces(), look) + _read(readers, filling, filling.pieces(), take)


def _read(
    readers: Readers, filling: Filling, stretch: Iterable[Rectangle], take: Callable[[np.ndarray, Rectangle], None]
) -> int:
    """Reads one piece after the other and hands each on."""
    matrix, copy, read_bytes = filling.matrix, filling.copy, 0
    for piece in stretch:
        numbers = read(readers.file(matrix.tensor.file), matrix, piece)
        if copy is not None:
            copied = read(readers.file(copy.file), replace(matrix, tensor=copy), piece)
            if not np.array_equal(numbers.astype(np.float32), copied.astype(np.float32)):
                raise UnsupportedCheckpoint(
                    f"config.json says tie_word_embeddings, but {copy.name} differs from {matrix.tensor.name}; say "
                    "tie_word_embeddings: false to use it"
                )
        take(numbers, piece)
        read_bytes += numbers.nbytes
        del numbers  # before there is the next one
    return read_bytes


def _targets(aims: Sequence[Aim]) -> list[tuple[Aim, np.ndarray]]:
    return [(aim, aim.target()) for aim in aims]


def _copy(numbers: np.ndarray, piece: Rectangle, targets: Iterable[tuple[Aim, np.ndarray]]) -> None:
    """The parts of a piece that are aimed somewhere, cast to the dtype held there."""
    for aim, target in targets:
        row, end = max(piece.rows[0], aim.rows[0]), min(piece.rows[1], aim.rows[1])
        start, stop = max(piece.columns[0], aim.columns[0]), min(piece.columns[1], aim.columns[1])
        if row < end and start < stop:
            part = numbers[
                row - piece.rows[0] : end - piece.rows[0], start - piece.columns[0] : stop - piece.columns[0]
            ]
            target[row - aim.rows[0] : end - aim.rows[0], start - aim.columns[0] : stop - aim.columns[0]] = part
