"""Devices in the order of a mesh: along the torus, slice by slice."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

import jax
import pytest

from engine.errors import NoFeasiblePlan
from engine.mesh import MeshShape, _by_slice, _grid, make_mesh


@dataclass(frozen=True)
class Chip:
    """As jax shows one of a TPU."""

    coords: tuple[int, int, int]
    slice_index: int
    core_on_chip: int = 0


def chips(slices: int, x: int, y: int) -> list[Chip]:
    """As they come: x fastest, and not slice by slice."""
    return [Chip((a, b, 0), number) for b, a in product(range(y), range(x)) for number in range(slices)]


def test_every_slice_of_a_mesh_is_one_of_the_devices() -> None:
    shape = MeshShape(2, 4, 1, slices=2)
    found = _by_slice(shape, chips(3, 2, 4))
    assert [{chip.slice_index for chip in own} for own in found] == [{0}, {1}]
    for own in found:
        places = [[chip.coords for (chip,) in row] for row in _grid(shape, own)]
        assert places == [[(x, y, 0) for y in range(4)] for x in range(2)]


def test_slices_that_are_too_few_or_too_small() -> None:
    with pytest.raises(NoFeasiblePlan, match=r"needs 3 slices of 4 chips, and there are 2 of 8; .* such as 2\*8x1x1"):
        _by_slice(MeshShape(2, 2, 1, slices=3), chips(2, 2, 4))
    with pytest.raises(NoFeasiblePlan, match=r"needs 2 slices of 8 chips, and there are 4 of 4"):
        _by_slice(MeshShape(2, 4, 1, slices=2), chips(4, 2, 2))


def test_one_slice_is_cut_into_as_many_as_are_asked_for() -> None:
    mesh = make_mesh(MeshShape(2, 2, 1, slices=2))
    assert dict(mesh.shape) == {"slice": 2, "x": 2, "y": 2, "z": 1}
    assert list(mesh.devices.flat) == jax.devices()
    assert dict(make_mesh(MeshShape(2, 2, 1)).shape) == {"x": 2, "y": 2, "z": 1}
