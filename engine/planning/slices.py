"""Slices of chips that can be had, and the meshes that lie on one.

A slice is a box of a torus, or some GPUs behind one switch. Several of them, over which the layers are a pipeline, are
written 2*v4:4x4x4. A mesh lies on it where each of its axes is made of whole
axes of the torus, so that a line of the mesh is a line, or a closed walk, of links. Sizes that can be had are those of
Google Cloud's documentation (docs.cloud.google.com/tpu/docs/v5p, .../v5e, .../types-topologies): up to 32 chips certain
boxes, beyond that boxes of whole cubes of 4 x 4 x 4, or halves and doublings of a square.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

from engine.errors import NoFeasiblePlan
from engine.mesh import MeshShape
from engine.planning.calibration import Calibration
from engine.planning.chips import Chip, named_chip

Wraps = tuple[bool, bool, bool]
"""Whether the lines along x, y and z of a mesh are closed to rings."""

_NAME = re.compile(r"(?:(?P<count>[1-9]\d{0,2})\*)?(?P<chip>[\w.-]+):(?P<shape>\d+(?:x\d+){0,2})")
_FLAT = ((1, 1), (2, 2), (2, 4), (4, 4), (4, 8), (8, 8), (8, 16), (16, 16), (16, 32), (32, 32))
_BELOW_A_CUBE = ((2, 2, 1), (2, 2, 2), (2, 2, 4), (2, 4, 4))
_CUBE = 4


@dataclass(frozen=True)
class Slice:
    """A box of `shape` chips, or several that are the stages of a pipeline."""

    chip: Chip
    shape: tuple[int, ...]
    count: int = 1
    calibration: Calibration | None = field(default=None, kw_only=True)
    """What is known of it beyond its chip's name: that it was measured, or how earlier runs went."""

    @classmethod
    def parse(cls, text: str) -> Slice:
        """Reads "v4:4x4x4", "v5e:4x4" or "h100:8"."""
        found = _NAME.fullmatch(text)
        if found is None:
            raise NoFeasiblePlan(
                f"chips are written as CHIP:AxBxC, or CHIP:AxB for a chip with a flat torus, such as v4:4x4x4 or "
                f"v5e:4x4, and as CHIP:N behind one switch, such as h100:8; several that are a pipeline as "
                f"2*v4:4x4x4; got {text!r}"
            )
        chip, shape = named_chip(found["chip"]), tuple(map(int, found["shape"].split("x")))
        _check(text, chip, shape)
        return cls(chip, shape, int(found["count"] or 1))

    def __str__(self) -> str:
        several = f"{self.count}*" if self.count > 1 else ""
        return f"{several}{self.chip.name}:{'x'.join(map(str, self.shape))}"

    @property
    def chips(self) -> int:
        """Of all slices."""
        return math.prod(self.shape) * self.count

    @property
    def grid(self) -> tuple[int, int, int]:
        """Devices along each axis of the torus; a chip that shows itself as two is two along the last."""
        first, second, third = (*self.shape, 1, 1)[:3]
        return first, second, third * self.chip.devices

    @property
    def mesh(self) -> MeshShape:
        """The mesh that is used if none is asked for: the torus as it is."""
        return MeshShape(*self.grid, self.count)

    @property
    def limit_bytes(self) -> int:
        """Of one device, what one program may use."""
        return int(self.chip.compiler_hbm_bytes or self.chip.hbm_bytes / self.chip.devices)

    @cached_property
    def wraps(self) -> Wraps:
        """Which axes of the torus are closed to rings."""
        first, second, third = (self.chip.is_ring(size) for size in (*self.shape, 0, 0)[:3])
        return first, second, third and len(self.shape) == 3

    @cached_property
    def meshes(self) -> Mapping[MeshShape, Wraps]:
        """Every mesh that lies on the slice, with the axes that are rings."""
        found: dict[MeshShape, Wraps] = {}
        if not self.chip.is_tpu:
            meshes = [self.mesh, *(replace(mesh, slices=self.count) for mesh in _factors(self.shape[0]))]
            return dict.fromkeys(meshes, (True, True, True))
        found[self.mesh] = self.wraps  # the first, as the one to take where others are no better
        real = [axis for axis, size in enumerate(self.grid) if size > 1]
        for where in itertools.product(range(3), repeat=len(real)):
            spans = [[axis for axis, at in zip(real, where, strict=True) if at == of] for of in range(3)]
            sizes = (math.prod(self.grid[axis] for axis in axes) for axes in spans)
            mesh = MeshShape(*sizes, slices=self.count)
            wraps: Wraps = (self._closes(spans[0]), self._closes(spans[1]), self._closes(spans[2]))
            found[mesh] = max(found.get(mesh, (False, False, False)), wraps, key=sum)
        return found

    def mesh_wraps(self, mesh: MeshShape) -> Wraps:
        """Of a mesh that somebody asks for; one that cuts an axis of the torus has no rings."""
        devices = math.prod(self.grid) * self.count
        if mesh.slices == 1 < self.count:
            mesh = replace(mesh, slices=self.count)
        if mesh.chips != devices:
            raise NoFeasiblePlan(
                f"a mesh of {mesh} is {mesh.chips} devices, and {self} has {devices}; use {self.mesh}, or another "
                f"product of {devices}"
            )
        return self.meshes.get(mesh, (False, False, False))

    def _closes(self, axes: list[int]) -> bool:
        """An axis made of several is sent along all of them, as they lie: it is as slow as the slowest."""
        return bool(axes) and all(self.wraps[axis] for axis in axes)


def slices_of(chip: Chip, most_chips: int) -> list[Slice]:
    """All slices of a chip that can be had, the smallest first."""
    return sorted(
        (Slice(chip, shape) for shape in _shapes(chip, most_chips) if math.prod(shape) <= most_chips),
        key=lambda one: (one.chips, one.shape),
    )


def named_slices(text: str, most_chips: int) -> list[Slice]:
    """Reads "v5e:4x4,v6e,v5p": certain slices, and all of a chip up to a size."""
    found: list[Slice] = []
    for name in filter(None, (part.strip() for part in text.split(","))):
        if ":" in name:
            found.append(Slice.parse(name))
            continue
        some = slices_of(named_chip(name), most_chips)
        if not some:
            raise NoFeasiblePlan(f"no slice of {name} has {most_chips} chips or fewer; allow more")
        found += some
    if not found:
        raise NoFeasiblePlan(f"no chips in {text!r}; write such as v5e:4x4, or v5e,v6e for all their slices")
    return list(dict.fromkeys(found))


def _shapes(chip: Chip, most_chips: int) -> Iterator[tuple[int, ...]]:
    if not chip.is_tpu:
        yield from ((count,) for count in (1, 2, 4, 8) if count <= chip.domain)
    elif len(chip.pod) == 2:
        smallest = 1 if chip.name != "v3" else 4  # a v3 comes as whole boards
        yield from (shape for shape in _FLAT if shape <= chip.pod and math.prod(shape) >= smallest)
    else:
        yield from _BELOW_A_CUBE
        sizes = [range(_CUBE, min(most, most_chips // _CUBE**2) + 1, _CUBE) for most in sorted(chip.pod)]
        for a, b, c in itertools.product(*sizes):
            if a <= b <= c:
                yield a, b, c


def _factors(count: int) -> list[MeshShape]:
    sizes = [size for size in range(1, count + 1) if count % size == 0]
    return [MeshShape(x, y, count // x // y) for x in sizes for y in sizes if count % (x * y) == 0]


def _check(text: str, chip: Chip, shape: tuple[int, ...]) -> None:
    if not chip.is_tpu:
        if len(shape) != 1 or not 1 <= shape[0] <= chip.domain:
            most = f"{chip.name}:{chip.domain}"
            raise NoFeasiblePlan(
                f"{text} does not exist: {chip.name}s are 1 to {chip.domain} behind one switch, and layers are not "
                f"split over the network between switches; more are a pipeline, such as 2*{most}"
            )
        return
    if len(shape) != len(chip.pod):
        torus = "AxBxC" if len(chip.pod) == 3 else "AxB"
        raise NoFeasiblePlan(f"{text} does not exist: the torus of {chip.name} has {len(chip.pod)} axes; write {torus}")
    if min(shape) < 1:
        raise NoFeasiblePlan(f"{text} does not exist: every size must be at least 1")
    if any(size > most for size, most in zip(sorted(shape), sorted(chip.pod), strict=True)):
        largest = "x".join(map(str, chip.pod))
        raise NoFeasiblePlan(f"{text} does not exist: the largest slice of {chip.name} is {largest}")
