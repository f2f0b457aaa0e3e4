"""How long a program takes, from what it does (engine/planning/counts.py) and what a chip can do.

    seconds  = max(compute + unhidden_fraction of activations' collectives, movement) + cache + latency
    compute  = FLOPs / (matmul_fraction peak) + vector_passes vector bytes / HBM bandwidth
    movement = the longer of weights and collectives + exposed_fraction of the shorter
    weights  = weight bytes / (memory_fraction HBM bandwidth),    cache likewise
    collectives = sum over axes of wire bytes / (link_fraction link), ring_gain times faster where the axis is a ring
    latency  = hops x hop_seconds, and on a measured machine (engine/planning/machine.py) what calls, layers, rows take

Products wait for neither weights nor links: they are streamed and sent in pieces (the paper's looped CollectiveEinsum,
section 3.5). Attention in decode has no product to hide the cache under. docs/cost-model.md derives all of it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from engine.axes import MeshAxis
from engine.mesh import AXES, MeshShape
from engine.planning.calibration import UNMEASURED_FRACTION, Calibration, calibration_of, is_measured
from engine.planning.chips import Chip
from engine.planning.counts import Counts, Sent, counts
from engine.planning.program import Program

Rings = tuple[bool, bool, bool]
"""For each axis of a mesh, whether its last chip is linked to its first."""


class Links(NamedTuple):
    """Seconds of collectives at the rate of one link, one way."""

    line: float = 0.0
    """Along axes that are no rings."""
    ring: float = 0.0

    def seconds(self, constants: Calibration) -> float:
        return (self.line + self.ring / constants.ring_gain) / constants.link_fraction


@dataclass(frozen=True)
class Ideal:
    """A program's work in seconds at the stated rates of a chip, before any constant is applied."""

    products: float
    vector: float
    weights: float
    cache: float
    activations: Links
    gathers: Links
    """Of weights."""
    hops: int
    network_hops: int
    """Between slices, or switched domains."""
    layers: int
    rows: int
    """Of a step of decode, times layers; below times the positions they see, and times the vocabulary."""
    positions: float
    logits: int


@dataclass(frozen=True)
class Cost:
    """Of one program: in prefill of the whole pass, in decode of one step at a context of `context_tokens`."""

    program: Program
    seconds: float
    parts: Mapping[str, float]
    """Seconds of each resource if it were alone; where they overlap they add up to more than `seconds`."""
    bound_by: Mapping[str, float]
    """The share of each resource in `seconds`, without what is hidden under another; together 1."""
    counts: Counts
    error_fraction: float
    """Of `seconds`: one standard deviation, relative."""

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
    def collective_bytes_by_axis(self) -> Mapping[str, float]:
        """By the axes of an instruction, such as "x" or "zy"."""
        sent: defaultdict[str, float] = defaultdict(float)
        for one in self.counts.sent:
            sent["".join(one.axes)] += one.wire_bytes
        return dict(sent)

    @property
    def chips(self) -> float:
        """Whole ones, where a chip shows itself as several devices."""
        return self.program.chips / self.program.chip.devices

    @property
    def mfu(self) -> float:
        """2 N tokens / (chips x peak x seconds): the paper's model FLOPS utilisation."""
        return self.counts.model_flops / (self.chips * self.program.chip.bf16_flops_per_second * self.seconds)

    @property
    def chip_seconds_per_token(self) -> float:
        return self.chips * self.seconds / self.program.tokens


def cost(program: Program, *, wraps: Rings | None = None, calibration: Calibration | None = None) -> Cost:
    """`wraps`: which axes of the mesh are rings; if not given, those that are as axes of the chip's torus."""
    done = counts(program)
    error = calibration.error_fraction if calibration else 0.0
    if calibration is None:
        calibration = calibration_of(program.chip.name)
        known = is_measured(program.phase, program.layout)
        error = max(calibration.error_fraction, 0.0 if known else UNMEASURED_FRACTION)
    parts, bound = timed(ideal(program, done, wraps), calibration)
    seconds = sum(bound.values())
    shares = {name: value / seconds for name, value in bound.items()}
    return Cost(program, seconds, parts, shares, done, error)


def ideal(program: Program, done: Counts, wraps: Rings | None = None) -> Ideal:
    """The work of a program at the rates that its chip states, of which a device has its part."""
    chip = program.chip
    rings = wraps or rings_of(chip, program.layouts.mesh)
    memory = chip.hbm_bytes_per_second / chip.devices
    activations, gathers = (
        _over_links([one for one in done.sent if one.of_weights == of], program.layouts.mesh, chip, rings)
        for of in (False, True)
    )
    return Ideal(
        products=(
            done.matmul_flops / chip.flops_per_second(program.weights)
            + done.attention_flops / chip.bf16_flops_per_second
        )
        * chip.devices,
        vector=done.vector_bytes / memory,
        weights=done.weight_bytes / memory,
        cache=done.kv_bytes / memory,
        activations=activations,
        gathers=gathers,
        hops=sum(one.times * _hops(one, chip, program.layouts.mesh, rings) for one in done.sent),
        network_hops=sum(one.times for one in done.sent if _is_beyond(one, chip, program.layouts.mesh)),
        layers=program.config.layers,
        rows=program.rows * program.config.layers if program.phase == "decode" else 0,
        positions=done.positions if program.phase == "decode" else 0.0,
        logits=program.rows * program.config.vocab if program.phase == "decode" else 0,
    )


def timed(work: Ideal, constants: Calibration) -> tuple[dict[str, float], dict[str, float]]:
    """Seconds of each resource alone, and what is left of each when they overlap."""
    activations = work.activations.seconds(constants)
    parts = {
        "compute": work.products / constants.matmul_fraction + constants.vector_passes * work.vector,
        "weights": work.weights / constants.memory_fraction,
        "kv": work.cache / constants.cache_fraction,
        "collectives": activations + work.gathers.seconds(constants),
        "latency": (
            work.hops * constants.hop_seconds
            + work.network_hops * constants.network_hop_seconds
            + _besides(work, constants)
        ),
    }
    moved = {name: parts[name] for name in ("weights", "collectives")}
    moved[min(moved, key=lambda name: moved[name])] *= constants.exposed_fraction
    computed = {"compute": parts["compute"], "collectives": constants.unhidden_fraction * activations}
    shorter, longer = sorted((computed, moved), key=lambda some: sum(some.values()))
    bound = dict.fromkeys(parts, 0.0) | {name: parts[name] for name in ("kv", "latency")}
    for some, share in ((longer, 1.0), (shorter, constants.serial_fraction)):
        for name, seconds in some.items():
            bound[name] += share * seconds
    return parts, bound


def _besides(work: Ideal, constants: Calibration) -> float:
    """What a measured machine takes for calls, layers and rows; nothing is known of it elsewhere."""
    return (
        constants.pass_seconds
        + work.layers * constants.layer_seconds
        + work.rows * constants.row_seconds
        + work.positions * constants.position_seconds
        + work.logits * constants.logit_seconds
    )


def rings_of(chip: Chip, mesh: MeshShape) -> Rings:
    """If the axes of the mesh are those of the torus."""
    return chip.is_ring(mesh.x), chip.is_ring(mesh.y), chip.is_ring(mesh.z)


def _links(chip: Chip, mesh: MeshShape) -> dict[MeshAxis, float]:
    """Bytes a second that a device sends along each axis, one way.

    Behind a switch all chips are next to each other; axes that reach beyond it go over the network. Devices come x
    slowest, so z is the first to be inside. Between slices there is always the network.
    """
    links: dict[MeshAxis, float] = {"slice": chip.network_bytes_per_second / chip.devices}
    near = 1
    for axis in reversed(AXES):
        near *= mesh.size((axis,))
        within = chip.is_tpu or near <= max(1, chip.domain)
        links[axis] = (chip.link_bytes_per_second if within else chip.network_bytes_per_second) / chip.devices
    return links


def _is_beyond(one: Sent, chip: Chip, mesh: MeshShape) -> bool:
    """Whether a collective goes over the network."""
    if "slice" in one.axes:
        return True
    return not chip.is_tpu and any(
        mesh.size(AXES[AXES.index(axis) :]) > max(1, chip.domain) for axis in one.axes if axis != "slice"
    )


def _over_links(sent: Iterable[Sent], mesh: MeshShape, chip: Chip, rings: Rings) -> Links:
    """A collective over two axes at once takes as long as one after the other, on the average of both orders: of the
    D (ab - 1) / ab it sends over a x b chips, D (a - 1) / ab and D (b - 1) / b, or the other way about. What a stage of
    a pipeline hands on, it sends whole.
    """
    links = _links(chip, mesh)
    line = ring = 0.0
    for one in sent:
        if one.kind == "collective-permute":
            line += one.wire_bytes / links[one.axes[0]]
            continue
        gathered = one.wire_bytes / (1 - 1 / mesh.size(one.axes))
        for axis in one.axes:
            size, others = mesh.size((axis,)), mesh.size(one.axes) / mesh.size((axis,))
            seconds = gathered * (1 - 1 / size) * (1 + 1 / others) / 2 / links[axis]
            is_ring = axis != "slice" and rings[AXES.index(axis)]
            ring, line = (ring + seconds, line) if is_ring else (ring, line + seconds)
    return Links(line, ring)


def _hops(one: Sent, chip: Chip, mesh: MeshShape, rings: Rings) -> int:
    """Half way around a ring, all along a line, one through a switch; an all-reduce goes twice. The network is counted
    by itself."""
    sizes = [(mesh.size((axis,)), rings[AXES.index(axis)]) for axis in one.axes if axis != "slice"]
    once = sum(size // 2 if is_ring else size - 1 for size, is_ring in sizes) if chip.is_tpu else len(sizes)
    return 2 * once if one.kind == "all-reduce" else once
