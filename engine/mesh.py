"""Chips as a mesh with axes x, y and z. Logical axes are mapped onto it by a layout (engine/layout.py).

Several slices, between which there is only the data centre's network, are a fourth axis before these.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from engine.axes import MeshAxis
from engine.errors import NoFeasiblePlan

if TYPE_CHECKING:
    from jax.sharding import Mesh

AXES: tuple[MeshAxis, ...] = ("x", "y", "z")
"""Of a slice."""

_SHAPE = re.compile(r"(?:([1-9]\d{0,4})\*)?([1-9]\d{0,4}(?:x[1-9]\d{0,4}){0,2})")


@dataclass(frozen=True)
class MeshShape:
    """X x Y x Z chips, in each of so many slices."""

    x: int = 1
    y: int = 1
    z: int = 1
    slices: int = 1

    @classmethod
    def parse(cls, text: str) -> MeshShape:
        """Reads "4x4x4", "4x4" (z is 1) or "8" (y and z are 1), and "2*4x4x4" for two slices of that."""
        found = _SHAPE.fullmatch(text)
        if found is None:
            raise NoFeasiblePlan(
                f"a mesh is written as XxYxZ, such as 2x2x2 or 4x4, with 2* before it for two slices; got {text!r}"
            )
        return cls(*map(int, found[2].split("x")), slices=int(found[1] or 1))

    @property
    def chips(self) -> int:
        """Of all slices."""
        return self.slices * self.slice_chips

    @property
    def slice_chips(self) -> int:
        return self.x * self.y * self.z

    def size(self, axes: Sequence[MeshAxis]) -> int:
        """Chips along these axes together."""
        chips = 1
        for axis in axes:  # not math.prod over a generator: plans are made of a million of these
            chips *= self.slices if axis == "slice" else getattr(self, axis)
        return chips

    def __str__(self) -> str:
        slices = f"{self.slices}*" if self.slices > 1 else ""
        return f"{slices}{self.x}x{self.y}x{self.z}"


def make_mesh(shape: MeshShape, devices: Sequence[Any] | None = None) -> Mesh:
    """A mesh whose axes run along the torus, if the devices have one; else in the order they come, x slowest.

    The slices of the mesh are those of the devices, if these are in as many; else pieces of the one they are in.
    """
    import jax  # not above: a plan is made on machines that need not start jax
    from jax.sharding import AxisType, Mesh

    devices = jax.devices() if devices is None else devices
    if len(devices) < shape.chips:
        raise NoFeasiblePlan(
            f"a mesh of {shape} needs {shape.chips} chips and there are {len(devices)}; "
            f"ask for a smaller mesh, such as {len(devices)}x1x1"
        )
    if shape.slices == 1:
        return Mesh(_grid(shape, devices[: shape.chips]), AXES, axis_types=(AxisType.Auto,) * 3)
    grid = np.stack([_grid(shape, some) for some in _by_slice(shape, devices)])
    return Mesh(grid, ("slice", *AXES), axis_types=(AxisType.Auto,) * 4)


def _by_slice(shape: MeshShape, devices: Sequence[Any]) -> list[Sequence[Any]]:
    """The devices of each slice of the mesh."""
    own: dict[int, list[Any]] = {}
    for device in devices:
        own.setdefault(getattr(device, "slice_index", 0), []).append(device)
    each = shape.slice_chips
    if len(own) == 1:
        return [devices[at * each : (at + 1) * each] for at in range(shape.slices)]
    if len(own) < shape.slices or min(map(len, own.values())) < each:
        chips = min(map(len, own.values()))
        raise NoFeasiblePlan(
            f"a mesh of {shape} needs {shape.slices} slices of {each} chips, and there are {len(own)} of {chips}; "
            f"ask for one such as {len(own)}*{chips}x1x1"
        )
    return [own[number][:each] for number in sorted(own)[: shape.slices]]


def _grid(shape: MeshShape, devices: Sequence[Any]) -> np.ndarray:
    """The devices of one slice, [x, y, z]."""
    from jax.experimental.mesh_utils import create_device_mesh

    torus = [(*device.coords, device.core_on_chip) for device in devices if hasattr(device, "coords")]
    sizes = tuple(len({place[axis] for place in torus}) for axis in range(4)) if torus else ()
    if len(torus) == shape.slice_chips and sizes[:3] == (shape.x, shape.y, shape.z):
        # Devices come host by host: in that order the axes of a mesh would not be lines of the torus.
        by_place = sorted(zip(torus, range(len(torus)), strict=True))
        return np.array([devices[at] for _, at in by_place]).reshape(shape.x, shape.y, shape.z)
    if torus:
        return create_device_mesh((shape.x, shape.y, shape.z), devices, allow_split_physical_axes=True)
    return np.array(devices).reshape(shape.x, shape.y, shape.z)
