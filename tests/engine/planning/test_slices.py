"""Slices that can be had, and which meshes lie on them."""

from __future__ import annotations

import math

import pytest

from engine.errors import NoFeasiblePlan
from engine.mesh import MeshShape
from engine.planning.chips import CHIPS, named_chip
from engine.planning.slices import Slice, named_slices, slices_of


def test_the_sizes_that_are_sold() -> None:
    def names(chip: str, most: int) -> list[str]:
        return [str(one).split(":")[1] for one in slices_of(CHIPS[chip], most)]

    assert names("v5e", 256) == ["1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16"]
    assert names("v5p", 128) == ["2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8"]
    assert {"4x4x16", "4x8x8"} <= set(names("v4", 256))
    assert names("h100", 256) == ["1", "2", "4", "8"]
    assert all(one.chips <= 5000 for chip in CHIPS.values() for one in slices_of(chip, 5000))


@pytest.mark.parametrize("name", ["v4:4x4x4", "v4:2x2x4", "v5e:4x8", "v5e:16x16", "tpu7x:2x2x2", "h100:8", "v5p:2x2x1"])
def test_a_mesh_has_every_device_once(name: str) -> None:
    on = Slice.parse(name)
    devices = on.chips * on.chip.devices
    assert next(iter(on.meshes)) == on.mesh
    assert {mesh.chips for mesh in on.meshes} == {devices}
    assert MeshShape(1, devices, 1) in on.meshes


@pytest.mark.parametrize(
    ("name", "mesh", "wraps"),
    [
        ("v4:4x4x4", "4x4x4", (True, True, True)),
        ("v4:4x4x4", "16x4x1", (True, True, False)),
        ("v4:2x2x1", "2x2x1", (False, False, False)),
        ("v4:2x2x4", "2x8x1", (False, False, False)),
        ("v4:2x2x4", "4x1x4", (False, False, True)),
        ("v5e:4x4", "4x4x1", (False, False, False)),
        ("v5e:4x4", "4x2x2", (False, False, False)),  # cuts an axis of the torus
        ("v5e:8x16", "8x16x1", (False, True, False)),
        ("v5e:8x16", "16x8x1", (True, False, False)),
        ("h100:8", "2x4x1", (True, True, True)),
    ],
)
def test_which_lines_of_a_mesh_are_rings(name: str, mesh: str, wraps: tuple[bool, ...]) -> None:
    assert Slice.parse(name).mesh_wraps(MeshShape.parse(mesh)) == wraps


def test_several_by_name() -> None:
    found = named_slices("v5e:4x4, v6e", 8)
    assert [str(one) for one in found] == ["v5e:4x4", "v6e:1x1", "v6e:2x2", "v6e:2x4"]
    assert named_slices("trillium,v6e", 1) == slices_of(named_chip("v6e"), 1)
    assert math.prod(named_slices("v5e", 4)[-1].shape) == 4


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("v9:2x2", "no chip is known by the name 'v9'; there are v3, v4, v5e"),
        ("v9", "no chip is known by the name 'v9'"),
        ("v4:4x4", "the torus of v4 has 3 axes; write AxBxC"),
        ("v5e:0x4", "at least 1"),
        ("v5e:32x16", "the largest slice of v5e is 16x16"),
        ("h100:16", "1 to 8 behind one switch"),
        ("h100:2x2", "1 to 8 behind one switch"),
        ("v4:", "CHIP:AxBxC"),
        (",", "no chips in ','"),
        ("v4", "no slice of v4 has 2 chips or fewer"),
    ],
)
def test_what_does_not_exist_is_said(text: str, says: str) -> None:
    with pytest.raises(NoFeasiblePlan) as refused:
        named_slices(text, 2)
    assert says in str(refused.value)


def test_a_mesh_of_another_size_is_refused() -> None:
    with pytest.raises(NoFeasiblePlan, match="a mesh of 2x2x1 is 4 devices, and v4:4x4x4 has 64; use 4x4x4"):
        Slice.parse("v4:4x4x4").mesh_wraps(MeshShape.parse("2x2"))
