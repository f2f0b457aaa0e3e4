"""What a compiled program sends: each collective with its kind, mesh axes, bytes, and how often it runs.

Bytes are the paper's D (Pope et al. 2022, appendix A.1), per chip: the output of an all-gather, the input of any other.
On the wire go D (K - 1) / K for K chips, and twice that for an all-reduce. The TPU compiler has forms of its own:

    all-gather-start .. all-gather-done       asynchronous: the same collective twice, counted once
    async-collective-start .. -done           the same as fusions; those between them carry a piece of the collective on
    a fusion of all-reduce and dynamic-slice  a reduce-scatter, padded to what its buffers hold
    all-reduce that names no source           the compiler's rewriting of a reduce-scatter or an all-gather: it moves
                                              twice what was asked for, and is worth a warning
    collective-permute named after a ring     a hop of a looped einsum: K - 1 of them are a collective (`ring_of`)
    collective-permute that names no source   what it moves for itself, such as the rim of a padded reduce-scatter
    send .. recv by the megascale runtime     a collective between slices, through their hosts
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from engine.compilation.hlo_text import Computation, Instruction, Module
from engine.model.decoder import LAYER_SCOPE
from engine.model.looped import ALL_GATHER, REDUCE_SCATTER

KINDS = (
    "all-gather",
    "reduce-scatter",
    "all-reduce",
    "all-to-all",
    "collective-permute",
    "ragged-all-to-all",
    "collective-broadcast",
)
_ASKED_FOR = re.compile(
    r'op_name="[^"]*\b(psum|psum_invariant|pmax|pmin|all_reduce|ppermute|collective_permute)\b[^"]*"'
)
_BETWEEN_SLICES = re.compile(r'_xla_megascale_transfer_type="(\w+)"')
_MEGASCALE_KINDS = {"ONE_TO_ONE": "collective-permute"}
_RINGS = re.compile(rf'op_name="[^"]*\b({REDUCE_SCATTER}|{ALL_GATHER})/')
_LAYER = re.compile(rf'op_name="[^"]*\b{LAYER_SCOPE}(\d+)/')
_IOTA = re.compile(r"\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?")


@dataclass(frozen=True)
class Collective:
    """One collective operation as it stands in the program."""

    kind: str
    axes: tuple[str, ...]
    """Mesh axes its groups run along, in the mesh's order; empty if its groups are no product of axes."""
    group: int
    """Chips that exchange with each other."""
    bytes: int
    """D of one run, per chip, without padding."""
    is_async: bool = False
    padding_bytes: int = 0
    """What the compiler adds to D for itself."""
    was: str = ""
    """The kind that the program asked for, where the compiler made another of it; "padding" if it asked for nothing."""
    ring_of: str = ""
    """The kind of collective that this permutation is one of K - 1 hops of (engine/model/looped.py)."""
    layer: int | None = None
    """Of the model, if it belongs to one (engine/model/decoder.py names them)."""

    @property
    def wire_bytes(self) -> int:
        """What one chip sends in one run, padding included."""
        moved = self.bytes + self.padding_bytes
        if self.kind in ("collective-permute", "collective-broadcast"):
            return moved
        return (2 if self.kind == "all-reduce" else 1) * moved * (self.group - 1) // self.group


def collective_of(
    module: Module, computation: Computation, instruction: Instruction, mesh: Sequence[tuple[str, int]]
) -> Collective | None:
    """The collective that an instruction issues, if it issues one; `mesh` is the axes' names and sizes, major first."""
    kind = instruction.opcode.removesuffix("-start")
    if kind in KINDS:
        return _collective(kind, computation, instruction, mesh, instruction.opcode.endswith("-start"))
    if instruction.opcode == "send" and (between := _BETWEEN_SLICES.search(instruction.attributes)):
        kind = _MEGASCALE_KINDS.get(between.group(1), between.group(1).lower().replace("_", "-"))
        slices, sent = dict(mesh).get("slice", 1), computation.operand(instruction).size_bytes
        moved = sent * slices if kind == "all-gather" else sent
        return Collective(kind, ("slice",), slices, moved, is_async=True, layer=_layer(instruction))
    if instruction.opcode not in ("fusion", "async-start"):
        return None
    fused = module.called(instruction) or module.called(instruction, "called_computation")
    found = _inside(module, fused) if fused else None
    if fused is None or found is None:
        return None
    where, inner = found
    steps = {one.attributes for one in fused if one.opcode == "custom-call"}
    is_start = any("AsyncCollectiveStart" in one for one in steps)
    if not is_start and (any("AsyncCollectiveDone" in one for one in steps) or "chain_id" in inner.attributes):
        return None  # a later piece of a collective that was counted where it starts
    kind = inner.opcode.removesuffix("-start")
    one = _collective(kind, where, inner, mesh, is_start or instruction.opcode == "async-start")
    if kind == "all-reduce" and not is_start and fused.instructions[fused.root].opcode == "dynamic-slice":
        asked = computation.operand_bytes(instruction)
        layer = _layer_of_operands(computation, instruction) if one.layer is None else one.layer
        return replace(one, kind="reduce-scatter", bytes=asked, padding_bytes=one.bytes - asked, was="", layer=layer)
    return one


def _inside(module: Module, computation: Computation) -> tuple[Computation, Instruction] | None:
    """The collective in what a fusion calls, however deep."""
    for instruction in computation:
        if instruction.opcode.removesuffix("-start") in KINDS:
            return computation, instruction
        if instruction.opcode == "fusion" and (called := module.called(instruction)):
            deeper = _inside(module, called)
            if deeper:
                return deeper
    return None


def _collective(
    kind: str, computation: Computation, instruction: Instruction, mesh: Sequence[tuple[str, int]], is_async: bool
) -> Collective:
    operand_bytes = computation.operand_bytes(instruction)
    if kind == "collective-permute":
        axes = _permuted_axes(instruction, mesh)
        group = int(np.prod([size for name, size in mesh if name in axes])) if axes else 0
    else:
        axes, group = _grouped_axes(instruction, mesh)
    was = ""
    if kind in ("all-reduce", "collective-permute") and not _ASKED_FOR.search(instruction.attributes):
        was = "padding" if kind == "collective-permute" else "reduce-scatter"
        if kind == "all-reduce" and "dynamic-update-slice" in computation.operand(instruction).name:
            was = "all-gather"
    return Collective(
        kind=kind,
        axes=axes,
        group=group,
        bytes=operand_bytes * group if kind == "all-gather" else operand_bytes,
        is_async=is_async,
        was=was,
        ring_of=_ring(instruction) if kind == "collective-permute" else "",
        layer=_layer(instruction),
    )


def _layer_of_operands(computation: Computation, instruction: Instruction) -> int | None:
    """Of something that lost its name: the layer of the nearest operand that has one."""
    nearest = [instruction]
    for _ in range(4):
        nearest = [computation.instructions[name] for one in nearest for name in one.operands]
        if layers := [layer for one in nearest if (layer := _layer(one)) is not None]:
            return max(layers)
    return None


def _ring(instruction: Instruction) -> str:
    found = _RINGS.search(instruction.attributes)
    return found.group(1).removeprefix("looped_").replace("_", "-") if found else ""


def _layer(instruction: Instruction) -> int | None:
    found = _LAYER.search(instruction.attributes)
    return int(found.group(1)) if found else None


def _grouped_axes(instruction: Instruction, mesh: Sequence[tuple[str, int]]) -> tuple[tuple[str, ...], int]:
    sizes = [size for _, size in mesh]
    groups = _groups(instruction.attribute("replica_groups") or "", int(np.prod(sizes)))
    places = np.stack(np.unravel_index(groups, sizes), axis=-1)  # [groups, members, axes]
    varying = [len(np.unique(places[0, :, axis])) for axis in range(len(mesh))]
    # A product of whole axes: as many members as the axes that vary have chips, in every group.
    members = groups.shape[1]
    axes = tuple(name for (name, _), many in zip(mesh, varying, strict=True) if many > 1)
    whole = int(np.prod([size for name, size in mesh if name in axes]))
    fixed = [axis for axis, (name, _) in enumerate(mesh) if name not in axes]
    same = all(len(np.unique(group[:, axis])) == 1 for group in places for axis in fixed)
    return (axes if whole == members and same else ()), members


def _groups(text: str, chips: int) -> np.ndarray:
    """Members of every group, [groups, members]; `{{0,1},{2,3}}`, `[2,2]<=[4]`, or nothing: all chips."""
    if found := _IOTA.search(text):
        shape, start, order = (tuple(map(int, part.split(","))) if part else () for part in found.groups())
        ids = np.arange(int(np.prod(start))).reshape(start)
        return (ids.transpose(order) if order else ids).reshape(shape)
    rows = [tuple(map(int, row.split(","))) for row in re.findall(r"\{([\d,]+)\}", text)]
    return np.array(rows) if rows else np.arange(chips).reshape(1, chips)


def _permuted_axes(instruction: Instruction, mesh: Sequence[tuple[str, int]]) -> tuple[str, ...]:
    """The axes along which anything is sent."""
    text = instruction.attribute("source_target_pairs") or ""
    pairs = np.array([tuple(map(int, pair.split(","))) for pair in re.findall(r"\{(\d+,\d+)\}", text)]).reshape(-1, 2)
    sizes = [size for _, size in mesh]
    source, target = (np.stack(np.unravel_index(pairs[:, side], sizes), axis=-1) for side in (0, 1))
    return tuple(name for axis, (name, _) in enumerate(mesh) if (source[:, axis] != target[:, axis]).any())
