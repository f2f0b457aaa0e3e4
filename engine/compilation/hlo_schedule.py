"""How long a compiled program takes by the compiler's own estimates, walked through in the order it scheduled.

Three things go on at once on a chip: computation, copies between HBM and on-chip memory, and communication. An
operation takes as long as the compiler estimates, or as its HBM traffic does if that is longer; asynchronous copies and
collectives run beside it, each kind one after the other, and whoever needs one waits for its end. A loop is walked
once and counted as often as it runs.

The scheduler's own account of exposed communication is optimistic: before fusion is final it takes products for two to
four times as long as the estimates that the compiler prints in the end. Therefore this walk.

A collective is taken to move D over two links, those of a ring both ways, as the compiler's scheduler does: over four
if its groups are two whole rings of the torus. An all-reduce takes twice that; an all-to-all D (K - 1) / K over one
link; a permutation D over one link. Between slices, what goes on the wire goes over a device's share of the network.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from engine.compilation.hlo_collectives import Collective, collective_of
from engine.compilation.hlo_loops import Loops
from engine.compilation.hlo_text import Computation, Instruction, Module
from engine.compilation.hlo_traffic import hbm_bytes, is_free
from engine.compilation.topology import Topology
from engine.mesh import MeshShape


@dataclass(frozen=True)
class Times:
    """Seconds of one run of a program, by the compiler's estimates."""

    compute: float
    """With collectives that take no time; waiting for HBM is part of it."""
    collectives: float
    """All collectives, one after the other: raw."""
    exposed: float
    """What collectives add to `compute`."""
    estimated: float
    """The compiler's estimates of all operations, added up: as if memory were never waited for."""
    unestimated: int
    """Kernels whose computation the compiler has no estimate for; only their HBM traffic is counted."""


@dataclass
class _Clock:
    """When the three are free, in seconds from the start, and when what was started ends."""

    compute: float = 0.0
    hbm: float = 0.0
    links: float = 0.0
    estimated: float = 0.0
    """Of operations, added up; no clock."""
    ends: dict[str, float] = field(default_factory=dict)

    def wait(self, name: str) -> None:
        self.compute = max(self.compute, self.ends.pop(name, 0.0))


@dataclass(frozen=True)
class Links:
    """What collectives go over."""

    bytes_per_second: float
    """One link of the torus, one way."""
    network_bytes_per_second: float
    """A device's share of the network between slices."""
    rings: frozenset[frozenset[str]]
    """Pairs of mesh axes that are two whole rings of the torus."""

    @classmethod
    def of(cls, topology: Topology, mesh: MeshShape) -> Links:
        """`mesh` is that of one slice."""
        torus = topology.torus_axes(mesh)
        whole = [axis for axis, spans in torus.items() if len(spans) == 1 and topology.wraps[spans[0]]]
        return cls(
            topology.facts.link_bytes_per_second,
            topology.chip.network_bytes_per_second / topology.chip.devices,
            frozenset(frozenset((one, other)) for one in whole for other in whole if one < other),
        )

    def seconds(self, one: Collective) -> float:
        """One run of a collective, as the compiler's scheduler would cost it."""
        moved = one.bytes + one.padding_bytes
        if "slice" in one.axes:
            return one.wire_bytes / self.network_bytes_per_second
        if one.kind == "collective-permute":
            return moved / self.bytes_per_second
        if one.kind in ("all-to-all", "ragged-all-to-all"):
            return one.wire_bytes / self.bytes_per_second
        links = 4 if frozenset(one.axes) in self.rings else 2
        return (2 if one.kind == "all-reduce" else 1) * moved / (links * self.bytes_per_second)


@dataclass(frozen=True)
class _Chip:
    topology: Topology
    links: Links
    mesh: Sequence[tuple[str, int]]


def walk(loops: Loops, start: Computation, topology: Topology, links: Links, mesh: Sequence[tuple[str, int]]) -> Times:
    """One run of `start`. `mesh` is its axes' names and sizes, major first."""
    chip = _Chip(topology, links, mesh)
    compute = _run(loops, start, chip, free=True).seconds
    run = _run(loops, start, chip, free=False)
    return Times(compute, run.collectives, run.seconds - compute, run.estimated, run.unestimated)


class _Ran(NamedTuple):
    """One run of a computation; as `Times`, with `seconds` of everything."""

    seconds: float
    collectives: float
    estimated: float
    unestimated: int


def _run(loops: Loops, computation: Computation, chip: _Chip, free: bool) -> _Ran:
    module, clock, raw, unestimated = loops.module, _Clock(), 0.0, 0
    for instruction in computation:
        inner = loops.inner(computation, instruction)
        if inner:
            runs = [(times, _run(loops, body, chip, free)) for body, times in inner]
            times, ran = max(runs, key=lambda run: run[0] * run[1].seconds)  # of a branch the longest
            clock.compute += times * ran.seconds
            clock.estimated += times * ran.estimated
            raw += times * ran.collectives
            unestimated += times * ran.unestimated
            continue
        one = collective_of(module, computation, instruction, chip.mesh)
        if one is not None:
            seconds = chip.links.seconds(one)
            raw += seconds
            _communicate(clock, instruction, one, 0.0 if free else seconds)
        elif instruction.opcode.endswith("-done") or _is_collective_end(module, instruction):
            _finish(clock, computation, instruction)
        elif not is_free(instruction):
            unestimated += _compute(clock, module, computation, instruction, chip)
    return _Ran(max(clock.compute, clock.hbm, *clock.ends.values(), 0.0), raw, clock.estimated, unestimated)


def _communicate(clock: _Clock, instruction: Instruction, one: Collective, seconds: float) -> None:
    end = max(clock.links, clock.compute) + seconds if seconds else clock.compute
    clock.links = max(clock.links, end)
    if one.is_async:
        clock.ends[instruction.name] = end
    else:
        clock.compute = end


def _is_collective_end(module: Module, instruction: Instruction) -> bool:
    if instruction.opcode != "fusion" or "async-collective-done" not in instruction.name:
        return False
    called = module.called(instruction)
    return called is not None and any("AsyncCollectiveDone" in inner.attributes for inner in called)


def _finish(clock: _Clock, computation: Computation, done: Instruction) -> None:
    """Waits for what this ends: what was started and leads here through the pieces in between."""
    waiting, seen = [done.name], set()
    while waiting:
        name = waiting.pop()
        if name in clock.ends:
            clock.wait(name)
            return
        if name in seen:
            continue
        seen.add(name)
        instruction = computation.instructions[name]
        if name == done.name or instruction.opcode in ("get-tuple-element", "fusion"):
            waiting.extend(instruction.operands)


def _compute(clock: _Clock, module: Module, computation: Computation, instruction: Instruction, chip: _Chip) -> int:
    """An operation, or the start of a copy; returns how many kernels this is that have no estimate."""
    moved = hbm_bytes(module, computation, instruction)
    if instruction.opcode.endswith("-start"):
        moved = _copied_bytes(computation, instruction)
        clock.hbm = max(clock.hbm, clock.compute) + moved / chip.topology.hbm_bytes_per_second
        clock.ends[instruction.name] = clock.hbm
        return 0
    seconds = moved / chip.topology.hbm_bytes_per_second
    clock.hbm = max(clock.hbm, clock.compute) + seconds
    estimated = (instruction.cycles or 0) / chip.topology.facts.clock_hz
    clock.estimated += estimated
    clock.compute += max(estimated, seconds)
    return int(instruction.opcode == "custom-call" and instruction.cycles is None and moved > 0)


def _copied_bytes(computation: Computation, start: Instruction) -> int:
    """Of an asynchronous copy: once for each end that is in HBM.

    A copy-start is printed as (target, source, ..), that of any other operation as ((operands), target, ..).
    """
    source = computation.operand(start)
    size = min([shape.size_bytes for shape in start.shapes if shape.dims] or [0])
    operands = sum(len(computation.instructions[name].shapes) for name in start.operands)
    target = operands if start.shape_text.startswith("((") else 0
    sides = [shape.space for shape in (*source.shapes[:1], *start.shapes[target : target + 1])]
    return size * sum(space == 0 for space in sides)
