"""Which rectangles of a stored tensor fill a box, against the whole parameter laid out by hand."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.axes import Axis
from engine.families.family import Fill
from engine.layout import HeldSizes
from engine.model.params import Parameter
from engine.weights.boxes import Box, as_stored, box_shape, matrix_shape, regions
from tests.engine.weights.odd_model import CONFIG

PARAMETERS: tuple[tuple[Axis, ...], ...] = (
    ("heads", "head_dim", "embed"),
    ("kv_heads", "head_dim", "embed"),
    ("embed", "heads", "head_dim"),
    ("experts", "ffn", "embed"),
    ("vocab", "embed"),
    ("heads", "head_dim"),
    ("embed",),
)


@dataclass(frozen=True)
class Case:
    """A parameter, how it is stored, and a box of how it is held."""

    axes: tuple[Axis, ...]
    sizes: dict[Axis, int]
    held: dict[Axis, int]
    stored: tuple[tuple[Axis, ...], ...]
    starts: tuple[int, ...]
    expert: int | None
    box: Box


@st.composite
def cases(draw: st.DrawFn) -> Case:
    axes = draw(st.sampled_from(PARAMETERS))
    sizes: dict[Axis, int] = {axis: draw(st.integers(1, 3)) for axis in (*axes, "kv_heads", "vocab")}
    sizes["heads"] = sizes["kv_heads"] * draw(st.integers(1, 3))
    held = dict(sizes)
    if draw(st.booleans()):
        held["kv_heads"] += draw(st.integers(0, 2))
        held["heads"] = held["kv_heads"] * (sizes["heads"] // sizes["kv_heads"] + draw(st.integers(0, 2)))
        held["vocab"] += draw(st.integers(0, 2))
    expert = draw(st.none() | st.integers(0, sizes["experts"] - 1)) if "experts" in axes else None
    merged, left = [], [axis for axis in axes if expert is None or axis != "experts"]
    while left:
        count = draw(st.integers(1, len(left)))
        merged.append(tuple(left[:count]))
        left = left[count:]
    stored = tuple(draw(st.permutations(merged)))
    starts = tuple(draw(st.integers(0, 2)) for _ in stored)
    cuts = [sorted((draw(st.integers(0, held[axis])), draw(st.integers(0, held[axis])))) for axis in axes]
    return Case(axes, sizes, held, stored, starts, expert, tuple((start, stop) for start, stop in cuts))


@settings(max_examples=300)
@given(cases())
def test_a_box_gets_its_part_of_the_parameter_and_each_number_once(case: Case) -> None:
    config = replace(CONFIG, heads=case.sizes["heads"], kv_heads=case.sizes["kv_heads"])
    held = HeldSizes(case.held["heads"], case.held["kv_heads"], case.held["vocab"])
    parameter = Parameter(tuple(case.sizes[axis] for axis in case.axes), case.axes)
    fill, box = Fill("some", parameter, case.stored, case.starts, case.expert), case.box
    axes, shape = fill.parameter.axes, fill.parameter.shape
    whole = np.arange(1, math.prod(shape) + 1).reshape(shape)
    part = whole if fill.expert is None else whole[fill.expert]
    left = [axis for axis in axes if fill.expert is None or axis != "experts"]
    ordered = part.transpose([left.index(axis) for merged in fill.stored for axis in merged]).reshape(fill.shape)
    tensor = np.full([start + size + 1 for start, size in zip(fill.starts, fill.shape, strict=True)], -1)
    tensor[tuple(slice(at, at + size) for at, size in zip(fill.starts, fill.shape, strict=True))] = ordered

    expected = np.zeros([stop for _, stop in box], int)  # as held, as far as the box reaches
    for index in np.ndindex(*shape):
        if fill.expert is not None and index[axes.index("experts")] != fill.expert:
            continue
        place = list(index)
        if "heads" in axes:
            at, group, group_held = axes.index("heads"), config.heads // config.kv_heads, held.heads // held.kv_heads
            place[at] = index[at] // group * group_held + index[at] % group
        if all(one < stop for one, (_, stop) in zip(place, box, strict=True)):
            expected[tuple(place)] = whole[index]

    filled = np.zeros(box_shape(box), int)
    matrices = tensor.reshape(matrix_shape(tensor.shape))
    for region in regions(fill, tensor.shape, box, config, held):
        rows, columns = region.rows, region.columns
        rectangle = matrices[region.matrix][
            rows.stored : rows.stored + rows.size, columns.stored : columns.stored + columns.size
        ]
        target = region.of(as_stored(filled, box, fill))
        assert target.shape == rectangle.shape
        assert target.size
        target += rectangle
    np.testing.assert_array_equal(filled, expected[tuple(slice(start, stop) for start, stop in box)])


def test_whole_parameters_and_whole_heads_are_one_rectangle() -> None:
    parameter = Parameter((12, 8, 16), ("heads", "head_dim", "embed"))
    fill = Fill("query", parameter, (("heads", "head_dim"), ("embed",)), (0, 0))
    assert len(list(regions(fill, (96, 16), ((0, 12), (0, 8), (0, 16)), CONFIG, None))) == 1
    assert len(list(regions(fill, (96, 16), ((3, 9), (0, 8), (4, 8)), CONFIG, None))) == 1
    assert len(list(regions(fill, (96, 16), ((3, 9), (0, 4), (0, 16)), CONFIG, None))) == 6
    assert len(list(regions(fill, (96, 16), ((0, 16), (0, 8), (0, 16)), CONFIG, HeldSizes(16, 4, 45)))) == 4
