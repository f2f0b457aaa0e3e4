"""Chips as a mesh with axes x, y and z. Logical axes are mapped onto it by a layout (engine/layout.py)."""

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

_SHAPE = re.compile(r"[1-9]\d{0,4}(x[1-9]\d{0,4}){0,2}")


@dataclass(frozen=True)
class MeshShape:
    """X x Y x Z chips."""

    x: int = 1
    y: int = 1
    z: int = 1

    @classmethod
    def parse(cls, text: str) -> MeshShape:
        """Reads "4x4x4", "4x4" (z is 1) or "8" (y and z are 1)."""
        if not _SHAPE.fullmatch(text):
            raise NoFeasiblePlan(f"a mesh is written as XxYxZ, such as 2x2x2 or 4x4; got {text!r}")
        return cls(*map(int, text.split("x")))

    @property
    def chips(self) -> int:
        return self.x * self.y * self.z

    def size(self, axes: Sequence[MeshAxis]) -> int:
        """Chips along these axes together."""
        chips = 1
        for axis in axes:  # not math.prod over a generator: plans are made of a million of these
            chips *= getattr(self, axis)
        return chips

    def __str__(self) -> str:
        return f"{self.x}x{self.y}x{self.z}"


def make_mesh(shape: MeshShape, devices: Sequence[Any] | None = None) -> Mesh:
    """A mesh whose axes run along the torus, if the devices have one; else in the order they come, x slowest."""
    import jax  # not above: a plan is made on machines that need not start jax
    from jax.experimental.mesh_utils import create_device_mesh
    from jax.sharding import AxisType, Mesh

    devices = jax.devices() if devices is None else devices
    if len(devices) < shape.chips:
        raise NoFeasiblePlan(
            f"a mesh of {shape} needs {shape.chips} chips and there are {len(devices)}; "
            f"ask for a smaller mesh, such as {len(devices)}x1x1"
        )
    devices = devices[: shape.chips]
    torus = [(*device.coords, device.core_on_chip) for device in devices if hasattr(device, "coords")]
    sizes = tuple(len({place[axis] for place in torus}) for axis in range(4)) if torus else ()
    if len(torus) == shape.chips and sizes[:3] == (shape.x, shape.y, shape.z):
        # Devices come host by host: in that order the axes of a mesh would not be lines of the torus.
        by_place = sorted(zip(torus, range(len(torus)), strict=True))
        grid = np.array([devices[at] for _, at in by_place]).reshape(shape.x, shape.y, shape.z)
    elif torus:
        grid = create_device_mesh((shape.x, shape.y, shape.z), devices, allow_split_physical_axes=True)
    else:
        grid = np.array(devices).reshape(shape.x, shape.y, shape.z)
    return Mesh(grid, AXES, axis_types=(AxisType.Auto,) * 3)
