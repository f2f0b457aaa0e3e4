"""Boxes of parameters, and where their numbers lie in what is stored.

A chip holds a box of each parameter: a range along every axis. A stored tensor is a matrix (or several, one for every
index of its leading dimensions), and what it gives to a box is a set of rectangles of it: usually one, but several
where merged axes are cut apart, or where heads are held padded.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product

import numpy as np

from engine.axes import Axis
from engine.families.family import Fill
from engine.layout import HeldSizes
from engine.model.config import ModelConfig

Box = tuple[tuple[int, int], ...]
"""From and to, along every axis."""


def whole(shape: Sequence[int]) -> Box:
    return tuple((0, size) for size in shape)


def box_shape(box: Box) -> tuple[int, ...]:
    return tuple(stop - start for start, stop in box)


@dataclass(frozen=True)
class Run:
    """Numbers that follow each other along a dimension both as stored and as held; where they begin in each."""

    stored: int
    held: int
    size: int


@dataclass(frozen=True)
class Region:
    """A rectangle of a stored matrix, and where it stands in a box seen as `as_stored` shows it."""

    matrix: int
    """Which of the tensor's matrices."""
    leading: tuple[int, ...]
    """Its indices in the leading dimensions, as held."""
    rows: Run
    columns: Run

    def of(self, held: np.ndarray) -> np.ndarray:
        """The part of the box that the rectangle fills; a view."""
        rows, columns = self.rows, self.columns
        matrix = held[self.leading] if held.ndim > 1 else held[None]
        return matrix[rows.held : rows.held + rows.size, columns.held : columns.held + columns.size]


def matrix_shape(shape: Sequence[int]) -> tuple[int, int, int]:
    """A tensor of this shape as (matrices, rows, columns); a vector is one row."""
    if len(shape) < 2:
        return 1, 1, math.prod(shape)
    return math.prod(shape[:-2]), shape[-2], shape[-1]


def regions(
    fill: Fill, shape: Sequence[int], box: Box, config: ModelConfig, held: HeldSizes | None
) -> Iterator[Region]:
    """What a tensor of this shape gives to a box of the parameter it fills, padded as `held` says."""
    ranges = dict(zip(fill.parameter.axes, box, strict=True))
    if any(not ranges[axis][0] <= index < ranges[axis][1] for axis, index in fill.only.items()):
        return
    sizes = dict(zip(fill.parameter.axes, fill.parameter.shape, strict=True))
    dims: list[list[Run]] = []
    for merged, start in zip(fill.stored, fill.starts, strict=True):
        runs = [Run(0, 0, 1)]
        for axis in merged:
            axis_runs = list(_cut(_held_runs(axis, sizes[axis], config, held), ranges[axis]))
            runs = list(_merged(runs, axis_runs, sizes[axis], ranges[axis][1] - ranges[axis][0]))
        dims.append([replace(run, stored=run.stored + start) for run in runs])
    leading = dims[:-2]
    rows = dims[-2] if len(dims) > 1 else [Run(0, 0, 1)]
    for at in product(*leading):
        for indices in product(*(range(run.size) for run in at)):
            matrix = 0
            for run, index, size in zip(at, indices, shape, strict=False):
                matrix = matrix * size + run.stored + index
            place = tuple(run.held + index for run, index in zip(at, indices, strict=True))
            for row_run, column_run in product(rows, dims[-1]):
                yield Region(matrix, place, row_run, column_run)


def as_stored(array: np.ndarray, box: Box, fill: Fill) -> np.ndarray:
    """The array of a box with its axes ordered and merged as the tensor's are; a view."""
    only = fill.only
    ranges = zip(fill.parameter.axes, box, strict=True)
    array = array[tuple(only[axis] - start if axis in only else slice(None) for axis, (start, _) in ranges)]
    axes = [axis for axis in fill.parameter.axes if axis not in only]
    sizes = dict(zip(axes, array.shape, strict=True))
    ordered = array.transpose([axes.index(axis) for merged in fill.stored for axis in merged])
    seen = ordered.reshape([math.prod(sizes[axis] for axis in merged) for merged in fill.stored])
    assert np.may_share_memory(seen, array) or not array.size
    return seen


def _held_runs(axis: Axis, size: int, config: ModelConfig, held: HeldSizes | None) -> list[Run]:
    """Where the indices of an axis stand when it is held padded: query heads stay with their key and value head."""
    if axis != "heads" or held is None:
        return [Run(0, 0, size)]
    group, group_held = config.heads // config.kv_heads, held.heads // held.kv_heads
    if group == group_held:
        return [Run(0, 0, size)]
    return [Run(at * group, at * group_held, group) for at in range(config.kv_heads)]


def _cut(runs: Sequence[Run], within: tuple[int, int]) -> Iterator[Run]:
    """The parts of runs that are held in this range, and where in it."""
    for run in runs:
        start, stop = max(run.held, within[0]), min(run.held + run.size, within[1])
        if start < stop:
            yield Run(run.stored + start - run.held, start - within[0], stop - start)


def _merged(outer: Sequence[Run], inner: Sequence[Run], stored: int, held: int) -> Iterator[Run]:
    """Runs of two axes merged into one dimension; the inner has `stored` numbers, of which `held` are in the box."""
    for major in outer:
        if list(inner) == [Run(0, 0, stored)] and stored == held:  # taken whole, so that major runs stay together
            yield Run(major.stored * stored, major.held * held, major.size * stored)
            continue
        for at in range(major.size):
            for minor in inner:
                yield Run(
                    (major.stored + at) * stored + minor.stored, (major.held + at) * held + minor.held, minor.size
                )
