"""TPU topologies by name, as the compiler wants them described: "v4:4x4x4", "v5e:4x4", "2*v4:4x4x4" (two slices).

A slice is a torus, or a part of one, of one kind of chip. Where a chip is two devices (tpu7x), the last axis of the
torus counts twice as long. What the compiler itself believes of a chip, its clock and links, stands here; what the
vendor states is in engine/planning/chips.py.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from engine.errors import NoFeasiblePlan
from engine.mesh import MeshShape
from engine.planning.chips import named_chip
from engine.planning.slices import Slice

_NAME = re.compile(r"(?:(?P<slices>\d+)\*)?(?P<slice>(?P<chip>[\w.-]+):\d+(?:x\d+){1,2})")

_ASYNC_GATHER = {"xla_enable_async_all_gather": "ENABLED"}
_ASYNC_GATHER_AS_FUSION = _ASYNC_GATHER | {"xla_tpu_enable_async_collective_fusion_fuse_all_gather": "ENABLED"}
"""Without both nothing is asynchronous; on v4, which has a core for gathers, the second only costs memory."""


@dataclass(frozen=True)
class CompilerFacts:
    """What libtpu 0.0.42.1 takes a chip to be, read from its own estimates."""

    clock_hz: float
    """Of the cycles in its estimates."""
    link_bytes_per_second: float
    """One link of the torus, one way, in its scheduler's costs."""
    device_kind: str
    """How jax calls a device of it."""
    config: str | None = None
    """Name of the chip's configuration; "megacore" makes two cores one device."""
    options: Mapping[str, str] | None = None
    """Options a program should be compiled with: what is off by default and hides communication."""
    looped_tokens: range = range(0)
    """For so many of a chip's tokens its schedules are shorter with looped einsums (docs/partitioning.md)."""


FACTS: Mapping[str, CompilerFacts] = {
    "v4": CompilerFacts(1.05e9, 44.8e9, "TPU v4", "megacore", _ASYNC_GATHER, range(256, 1025)),
    "v5e": CompilerFacts(1.5e9, 46.7e9, "TPU v5 lite"),
    "v5p": CompilerFacts(1.75e9, 93.4e9, "TPU v5", "megacore", _ASYNC_GATHER_AS_FUSION),
    "v6e": CompilerFacts(1.75e9, 93.4e9, "TPU v6 lite", None, _ASYNC_GATHER_AS_FUSION),
    "tpu7x": CompilerFacts(
        2.2e9, 108e9, "TPU7x", None, _ASYNC_GATHER_AS_FUSION
    ),  # clock inferred: peak / (2 x 4 x 256 x 256)
}


@dataclass(frozen=True)
class Topology(Slice):
    """Slices of chips that there is a compiler for."""

    @classmethod
    def parse(cls, text: str) -> Topology:
        """Reads "v4:4x4x4", or "2*v4:4x4x4" for two slices of that."""
        found = _NAME.fullmatch(text)
        if found is None:
            raise NoFeasiblePlan(
                f"chips are written as CHIP:AxBxC, or CHIP:AxB for a chip with a flat torus, such as v4:4x4x4 or "
                f"v5e:4x4, with 2* before it for two slices; got {text!r}"
            )
        name = found["chip"]
        try:
            chip = named_chip(name)
        except NoFeasiblePlan:
            chip = None
        if chip is None or chip.name not in FACTS:
            raise NoFeasiblePlan(f"there is no TPU compiler for {name!r}; there is for {', '.join(FACTS)}")
        one, count = Slice.parse(found["slice"]), int(found["slices"] or 1)
        if count < 1:
            raise NoFeasiblePlan(f"{text} does not exist: there must be at least 1 slice")
        return cls(one.chip, one.shape, count)

    @property
    def facts(self) -> CompilerFacts:
        return FACTS[self.chip.name]

    @property
    def limit_bytes(self) -> int:
        """HBM that the compiler lets a program use on one device."""
        assert self.chip.compiler_hbm_bytes is not None, self.chip
        return super().limit_bytes

    @property
    def hbm_bytes_per_second(self) -> float:
        """Of one device."""
        return self.chip.hbm_bytes_per_second / self.chip.devices

    def description(self) -> dict[str, Any]:
        """Arguments of `jax.experimental.topologies.get_topology_desc`."""
        sizes = (*self.shape, 1)[:3]
        host = (*self.chip.host, 1)[:3]
        arguments: dict[str, Any] = {
            "platform": "tpu",
            "topology_name": f"{self.chip.name}:{'x'.join(map(str, self.shape))}",
            "chips_per_host_bounds": tuple(math.gcd(size, most) for size, most in zip(sizes, host, strict=True)),
            "num_slices": self.count,
            "wrap": self.wraps,
        }
        if self.facts.config:
            arguments["chip_config_name"] = self.facts.config
        return arguments

    def torus_axes(self, mesh: MeshShape) -> dict[str, tuple[int, ...]]:
        """For each axis of a mesh of a slice, which axes of the torus it is made of, if it is made of whole ones.

        Devices fill the mesh in the order of their coordinates, so an axis is whole where the products of sizes meet.
        """
        found: dict[str, tuple[int, ...]] = {}
        before = 1
        for axis in ("x", "y", "z"):
            size = mesh.size((axis,))
            spans, at = [], 1
            for number, length in enumerate(self.grid):
                if length > 1 and at >= before and at * length <= before * size:
                    spans.append(number)
                at *= length
            whole = math.prod(self.grid[number] for number in spans) == size
            found[axis] = tuple(spans) if whole else ()
            before *= size
        return found


def options_for(device_kind: str) -> dict[str, str]:
    """Compiler options for a device as jax calls it, "TPU v4"; nothing for what is no TPU."""
    facts = _facts_of(device_kind)
    return dict(facts.options or {}) if facts else {}


def looped_tokens(device_kind: str) -> range:
    """`CompilerFacts.looped_tokens` of a device as jax calls it; none for what is no TPU."""
    facts = _facts_of(device_kind)
    return facts.looped_tokens if facts else range(0)


def fused_gathers(device_kind: str) -> bool:
    """`Chip.fused_gathers` of a device as jax calls it; not of what is no TPU."""
    return any(facts.device_kind == device_kind and named_chip(name).fused_gathers for name, facts in FACTS.items())


def _facts_of(device_kind: str) -> CompilerFacts | None:
    return next((facts for facts in FACTS.values() if facts.device_kind == device_kind), None)
