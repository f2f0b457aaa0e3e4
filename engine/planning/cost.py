"""How long a program takes, from what it does (engine/planning/counts.py) and what a chip can do.

seconds = max(products and attention / rate, weights / HBM) + cache / HBM + collectives + overhead
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

from engine.planning.chips import Chip
from engine.planning.counts import Counts, counts
from engine.planning.program import Program


@dataclass(frozen=True)
class Cost:
    """Of one program: in prefill of the whole pass, in decode of one step at a context of `context_tokens`."""

    program: Program
    seconds: float
    parts: Mapping[str, float]
    """Seconds of each resource if it were alone; what is overlapped counts in both."""
    bound_by: Mapping[str, float]
    """Share of each resource in `seconds`; together 1."""
    counts: Counts
    collective_bytes_by_axis: Mapping[str, float]
    """By the mesh axes of one instruction, such as "x" or "zy"."""
    error_fraction: float
    """The model's relative error, one standard deviation."""

    @property
    def flops(self) -> float:
        """Of all chips."""
        return self.counts.flops * self.program.chips

    @property
    def weight_bytes(self) -> float:
        """Read by one chip."""
        return self.counts.weight_bytes

    @property
    def kv_bytes(self) -> float:
        """Read by one chip."""
        return self.counts.kv_bytes

    @property
    def collective_bytes(self) -> float:
        """Sent by one chip."""
        return self.counts.collective_bytes

    @property
    def chips(self) -> float:
        """Whole ones."""
        return self.program.chips / self.program.chip.devices

    @property
    def mfu(self) -> float:
        """2 N tokens / (chips x peak x seconds), the paper's model FLOPS utilisation."""
        return self.counts.model_flops / (self.chips * self.program.chip.bf16_flops_per_second * self.seconds)

    @property
    def chip_seconds_per_token(self) -> float:
        return self.chips * self.seconds / self.program.tokens


def cost(program: Program, *, wraps: tuple[bool, bool, bool] | None = None) -> Cost:
    """`wraps`: which axes of the mesh are rings; if not given, those that are as axes of the chip's torus."""
    chip = program.chip
    done = counts(program)
    links = _links(program, chip, wraps)
    sent: defaultdict[str, float] = defaultdict(float)
    collective_seconds = 0.0
    for one in done.collectives:
        for stage in one.stages:
            sent["".join(stage.axes)] += one.times * stage.wire_bytes
            collective_seconds += one.times * stage.wire_bytes / (0.6 * min(links[axis] for axis in stage.axes))
    memory = 0.9 * chip.hbm_bytes_per_second / chip.devices
    parts = {
        "compute": done.flops / (0.75 * chip.bf16_flops_per_second / chip.devices),
        "weights": (done.weight_bytes + 2 * done.gathered_bytes) / memory,
        "kv": done.kv_bytes / memory,
        "collectives": collective_seconds,
        "latency": 90e-6 * program.config.layers,
    }
    shown = dict(parts)
    shown["weights" if parts["compute"] > parts["weights"] else "compute"] = 0.0
    seconds = math.fsum(shown.values())
    bound_by = {name: value / seconds for name, value in shown.items()}
    return Cost(program, seconds, parts, bound_by, done, dict(sent), 0.1)


def _links(program: Program, chip: Chip, wraps: tuple[bool, bool, bool] | None) -> dict[str, float]:
    """Bytes a second that a chip sends along each mesh axis."""
    if not chip.is_tpu:
        return dict.fromkeys("xyz", chip.link_bytes_per_second)
    mesh = program.layouts.mesh
    rings = wraps or tuple(chip.is_ring(size) for size in (mesh.x, mesh.y, mesh.z))
    return {axis: chip.link_bytes_per_second * (2 if ring else 1) for axis, ring in zip("xyz", rings, strict=True)}
