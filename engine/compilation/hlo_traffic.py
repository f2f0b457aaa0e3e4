"""How many bytes an instruction of a compiled program moves between HBM and the chip.

An operand of which only a slice is read counts with that slice, a buffer updated in place with the update. What lies in
on-chip memory counts nothing: the copy that brought it there did.
"""

from __future__ import annotations

from engine.compilation.hlo_collectives import KINDS
from engine.compilation.hlo_text import Computation, Instruction, Module

_FREE = {
    "after-all",
    "bitcast",
    "constant",
    "get-tuple-element",
    "opt-barrier",
    "parameter",
    "partition-id",
    "replica-id",
    "tuple",
}
_FREE_CALLS = ("AllocateBuffer", "AssumeGatherIndicesInBound", "ConcatBitcast")
_SLICES = {"dynamic-slice", "gather", "slice"}
_UPDATED = {"dynamic-update-slice": 1, "scatter": 2}
"""In place, with the number of the operand that holds the update."""


def is_free(instruction: Instruction) -> bool:
    """Whether it only names things."""
    if instruction.opcode == "custom-call":
        return any(f'"{target}"' in instruction.attributes for target in _FREE_CALLS)
    return instruction.opcode in _FREE


def hbm_bytes(module: Module, computation: Computation, instruction: Instruction) -> int:
    """Bytes read from HBM and written to it."""
    if is_free(instruction):
        return 0
    fused = module.called(instruction) if instruction.opcode == "fusion" else None
    total = 0
    for index, name in enumerate(instruction.operands):
        operand = computation.instructions[name]
        if any(shape.space for shape in operand.shapes):
            continue
        if fused is None:
            total += _read_by(module, computation, instruction, name)
        elif index < len(fused.parameters):
            total += _read(module, fused, fused.parameters[index].name)
    if fused is not None:
        return total + _written(fused, fused.instructions[fused.root])
    return total + _written(computation, instruction)


def _read(module: Module, computation: Computation, name: str) -> int:
    """Bytes of an instruction's result that its users read, all of it at most."""
    whole = computation.instructions[name].size_bytes
    read = 0
    for user in computation.users[name]:
        read += _read_by(module, computation, user, name)
        if read >= whole:
            return whole
    return read


def _read_by(module: Module, computation: Computation, user: Instruction, name: str) -> int:
    if user.opcode in _SLICES and user.operands[0] == name:
        return user.size_bytes
    if user.opcode in _UPDATED and user.operands[0] == name:
        return 0
    if user.opcode == "tuple" or user.opcode.removesuffix("-start") in KINDS:
        return 0  # passed on, or a piece of a collective that goes along with the computation
    if user.opcode in ("bitcast", "get-tuple-element"):
        return _read(module, computation, user.name)
    if user.opcode == "fusion" and (fused := module.called(user)):
        places = [place for place, operand in enumerate(user.operands) if operand == name]
        passed = fused.instructions[fused.root]
        while passed.opcode == "bitcast":
            passed = fused.operand(passed)
        if passed.opcode == "parameter" and int(passed.literal) in places:
            return _read(module, computation, user.name)  # a fusion in a fusion that only names it anew
        return sum(_read(module, fused, fused.parameters[place].name) for place in places)
    return computation.instructions[name].size_bytes


def _written(computation: Computation, result: Instruction) -> int:
    """Bytes written to HBM for this result."""
    if result.opcode == "tuple":
        return sum(_written(computation, computation.instructions[name]) for name in result.operands)
    if (is_free(result) and result.opcode != "bitcast") or result.opcode.removesuffix("-start") in KINDS:
        return 0
    if any(shape.space for shape in result.shapes):
        return 0
    source = result
    while source.opcode == "bitcast":
        source = computation.operand(source)
    if source.opcode in _UPDATED:
        return computation.operand(source, _UPDATED[source.opcode]).size_bytes
    return 0 if source.opcode == "parameter" else result.size_bytes
