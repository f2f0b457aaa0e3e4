"""What the TPU compiler made of a program, as numbers: what it sends, how long it takes, what it copies.

All times are the compiler's estimates; nothing was measured. engine/compilation/hlo_schedule.py says how they are read.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from engine.compilation.hlo_collectives import Collective, collective_of
from engine.compilation.hlo_loops import Loops
from engine.compilation.hlo_schedule import Links, Times, walk
from engine.compilation.hlo_text import Computation, Instruction, Module, parse
from engine.compilation.topology import Topology
from engine.mesh import MeshShape

LARGE_BYTES = 2**20
"""Copies of arguments smaller than this are not worth a word."""

SMALL_BYTES = 16 * 2**10
"""A collective that moves less takes as long as its messages are on the way, whatever its kind."""

_MOVES_ONLY = {"parameter", "bitcast", "copy", "transpose", "reshape", "convert", "constant", "tuple"}
_MOVES = {"copy", "transpose", "convert"}


@dataclass(frozen=True)
class Sent:
    """A collective, and how often it runs in one run of the program."""

    collective: Collective
    count: int
    of_a_layer: int
    """How many of these runs are those of one layer, in the middle of the model."""
    seconds: float
    """All runs together, one after the other."""

    def to_json(self) -> dict[str, Any]:
        one = self.collective
        return {
            "kind": one.kind,
            "axes": list(one.axes),
            "group": one.group,
            "count": self.count,
            "bytes": one.bytes * self.count,
            "wire_bytes": one.wire_bytes * self.count,
            "count_per_layer": self.of_a_layer,
            "bytes_per_layer": one.bytes * self.of_a_layer,
            "bytes_each": one.bytes,
            "padding_bytes": one.padding_bytes * self.count,
            "async": one.is_async,
            "looped": bool(one.ring_of),
            "was": one.was,
            "raw_seconds": self.seconds,
        }


@dataclass(frozen=True)
class Copy:
    """An argument that is laid out anew, or widened, or copied within HBM, instead of being read as it lies."""

    instruction: str
    argument: str
    bytes: int
    count: int
    is_once: bool = False
    """Once a call, before its steps."""

    def to_json(self) -> dict[str, Any]:
        return {
            "instruction": self.instruction,
            "argument": self.argument,
            "bytes": self.bytes,
            "count": self.count,
            "once_a_call": self.is_once,
        }


@dataclass(frozen=True)
class Report:
    """Of one program, per chip."""

    sent: tuple[Sent, ...]
    copies: tuple[Copy, ...]
    times: Times
    outside: Times | None
    """What a call takes besides its steps, if the other numbers are those of a step."""
    aliased: int
    """Arguments whose memory a result takes over."""
    assumed_runs: Mapping[int, int]
    """Runs that were assumed of loops whose end depends on data -> how many such loops."""

    def warnings(self) -> Iterable[str]:
        """What the program does besides what was asked for, a sentence each."""
        for sent in self.sent:
            one = sent.collective
            over = " x ".join(one.axes) or f"groups of {one.group}"
            size = f"{_size(one.bytes)} over {over}, {sent.count} times"
            if one.bytes < SMALL_BYTES:
                continue
            if one.was in ("reduce-scatter", "all-gather"):
                yield f"{_article(one.was)} became an all-reduce, which moves twice as much: {size}"
            elif one.padding_bytes:
                yield f"a reduce-scatter is padded by {one.padding_bytes / one.bytes:.1%}: {size}"
            elif not one.axes:
                yield f"{_article(one.kind)} runs along no axes of the mesh: {size}"
        alike: Counter[tuple[str, int, bool]] = Counter()
        for copy in self.copies:
            alike[copy.argument, copy.bytes, copy.is_once] += copy.count
        for (argument, size, is_once), count in alike.items():
            when = "a call" if is_once else "in all"
            yield f"{argument}, or what has its shape, is copied: {_size(size)}, {count} times {when}"
        for runs, count in self.assumed_runs.items():
            yield f"loops whose end depends on data are counted {runs} times ({count} of them)"
        if self.times.unestimated:
            yield (
                f"{self.times.unestimated} kernels have no estimate of their computation: compute_seconds counts their "
                "memory traffic alone"
            )


def report(
    text: str,
    topology: Topology,
    mesh: Sequence[tuple[str, int]],
    shape: MeshShape,
    *,
    layers: int = 1,
    assumed_runs: Sequence[int] = (1,),
    of_step: bool = False,
) -> Report:
    """Reads a compiled program's text.

    `mesh` is axes' names and sizes, major first; `shape` that of one slice; `layers` how many the model has;
    `assumed_runs` as `Loops` takes it.
    `of_step`: the program repeats a step until data says that it is enough; report one step.
    """
    module = parse(text)
    loops, links = Loops(module, assumed_runs), Links.of(topology, shape)
    middle = (layers - 1) // 2  # of two, the first: prefill needs but keys and values of the last
    step = loops.step if of_step else None
    by_layer, copies = _read(loops, step or module.entry, mesh)
    counts, of_a_layer = (
        _counted((replace(one, layer=None), count) for one, count in by_layer.items() if one.layer in some)
        for some in ({one.layer for one in by_layer}, {middle})
    )
    outside = None
    if step is not None:
        without_steps = Loops(module, (0, *assumed_runs[1:]))
        copies += [replace(copy, is_once=True) for copy in _read(without_steps, module.entry, mesh)[1]]
        outside = walk(without_steps, module.entry, topology, links, mesh)
    return Report(
        sent=tuple(
            _whole(Sent(one, count, of_a_layer[one], count * links.seconds(one))) for one, count in counts.items()
        ),
        copies=tuple(copies),
        times=walk(loops, step or module.entry, topology, links, mesh),
        outside=outside,
        aliased=len(re.findall(r"\((?:\d+), \{[\d, ]*\}, \w+-alias\)", module.header)),
        assumed_runs=Counter(loops.unknown) - Counter({assumed_runs[0]: int(step is not None)}),
    )


def _read(
    loops: Loops, start: Computation, mesh: Sequence[tuple[str, int]]
) -> tuple[Mapping[Collective, int], list[Copy]]:
    """How often each collective runs from `start` on, and what is copied."""
    arguments = _large_arguments(loops.module.entry)
    counts: Counter[Collective] = Counter()
    copies = []
    for computation, times in loops.executed(start):
        for instruction in computation if times else ():
            one = collective_of(loops.module, computation, instruction, mesh)
            if one is not None:
                counts[one] += times
            elif copied := _copied(loops.module, computation, instruction, arguments):
                copies.append(Copy(instruction.name, copied, instruction.size_bytes, times))
    return counts, copies


def _whole(sent: Sent) -> Sent:
    """The collectives that hops of rings are together; anything else as it is."""
    one = sent.collective
    if not one.ring_of:
        return sent
    hops = one.group - 1
    ring = replace(one, kind=one.ring_of, bytes=one.bytes * one.group)
    return replace(sent, collective=ring, count=sent.count // hops, of_a_layer=sent.of_a_layer // hops)


def _counted(collectives: Iterable[tuple[Collective, int]]) -> Counter[Collective]:
    counts: Counter[Collective] = Counter()
    for one, count in collectives:
        counts[one] += count
    return counts


def _large_arguments(entry: Computation) -> Mapping[int, str]:
    """Number of elements -> the first argument that has so many."""
    found: dict[int, str] = {}
    for parameter in entry.parameters:
        for shape in parameter.shapes:
            if shape.size_bytes >= LARGE_BYTES:
                found_name = re.search(r'op_name="([^"]*)"', parameter.attributes)
                name = found_name.group(1).replace("\\'", "'") if found_name else parameter.name
                dims = ",".join(map(str, shape.dims))
                found.setdefault(shape.elements, f"{name} {shape.dtype}[{dims}]")
    return found


def _copied(
    module: Module, computation: Computation, instruction: Instruction, arguments: Mapping[int, str]
) -> str | None:
    """The argument of whose size a copy is that this instruction makes.

    Bringing it to on-chip memory as it lies is no copy but the way to use it; in another order or format it is.
    """
    if instruction.opcode == "fusion":
        called = module.called(instruction)
        opcodes = {inner.opcode for inner in called} if called else set()
        if not opcodes <= _MOVES_ONLY or not opcodes & _MOVES:
            return None
    elif instruction.opcode not in _MOVES and instruction.opcode != "copy-start":
        return None
    if not instruction.operands:
        return None
    target, source = instruction.shapes[0], computation.operand(instruction).shapes[0]
    is_same = (target.dtype, target.dims, target.layout) == (source.dtype, source.dims, source.layout)
    return None if is_same and (target.space or source.space) else arguments.get(target.elements)


def _size(count: int) -> str:
    return f"{count / 2**20:,.1f} MiB" if count >= 2**20 else f"{count / 2**10:,.1f} KiB"


def _article(kind: str) -> str:
    return f"an {kind}" if kind.startswith("a") else f"a {kind}"
