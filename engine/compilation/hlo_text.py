"""The text of a compiled program (optimised, scheduled HLO) as computations and instructions.

XLA prints it for people, one instruction a line, `%name = shape opcode(%operand, ...), attribute=..., ...`, in the
order in which they run. Only what the report needs is read; an instruction's attributes are looked up on demand.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property

_BITS = {"pred": 8, "bf16": 16, "f16": 16, "f32": 32, "f64": 64}
_ARRAY = re.compile(r"([a-z]\w*)\[([\d,]*)\](\{[^}]*\})?")
_MEMORY_SPACE = re.compile(r"S\((\d+)\)")
_HEADER = re.compile(r"^(ENTRY )?%?([^\s(]+) \(.*\{$")
_INSTRUCTION = re.compile(r"^\s+(ROOT )?%?(\S+) = ")
_OPCODE = re.compile(r"\s*([\w-]+)\(")
_NAME = re.compile(r"%([^\s,()]+)")
_CYCLES = re.compile(r'"estimated_cycles":"?(\d+)')
_UNKNOWN_CYCLES = 2**63 - 1
"""What the compiler prints for an operation that its cost model does not cover."""


@dataclass(frozen=True)
class Shape:
    """An array's element type, dimensions and place. Space 0 is HBM, others are on the chip."""

    dtype: str
    dims: tuple[int, ...]
    space: int
    layout: str
    """The order of the dimensions in memory and their tiles."""

    @property
    def elements(self) -> int:
        return math.prod(self.dims)

    @property
    def size_bytes(self) -> int:
        return -(-self.elements * _bits(self.dtype) // 8)


def _bits(dtype: str) -> int:
    if dtype in _BITS:
        return _BITS[dtype]
    width = re.match(r"[a-z]+(\d+)", dtype)
    return int(width.group(1)) if width else 0  # token, opaque


def shapes(text: str) -> tuple[Shape, ...]:
    """All arrays of a shape as it is printed; several if it is a tuple."""
    found = []
    for dtype, dims, layout in _ARRAY.findall(text):
        space = _MEMORY_SPACE.search(layout)
        sizes = tuple(map(int, dims.split(","))) if dims else ()
        found.append(Shape(dtype, sizes, int(space.group(1)) if space else 0, _MEMORY_SPACE.sub("", layout)))
    return tuple(found)


@dataclass(frozen=True)
class Instruction:
    """One line of a computation."""

    name: str
    opcode: str
    shape_text: str
    operands: tuple[str, ...]
    """Names of instructions of the same computation."""
    attributes: str
    """The rest of the line, metadata and the backend's configuration included."""
    literal: str
    """What stands between the parentheses: a constant's value, a parameter's number."""
    is_root: bool = False

    @cached_property
    def shapes(self) -> tuple[Shape, ...]:
        return shapes(self.shape_text)

    @property
    def size_bytes(self) -> int:
        """Of what it returns, a tuple's parts together."""
        return sum(shape.size_bytes for shape in self.shapes)

    @cached_property
    def cycles(self) -> int | None:
        """The compiler's estimate of one run; None where it has none."""
        found = _CYCLES.search(self.attributes)
        cycles = int(found.group(1)) if found else _UNKNOWN_CYCLES
        return None if cycles == _UNKNOWN_CYCLES else cycles

    def attribute(self, key: str) -> str | None:
        """The value of `key=value`, with the braces or brackets it stands in."""
        start = self.attributes.find(f"{key}=")
        while start > 0 and self.attributes[start - 1] not in " ,":
            start = self.attributes.find(f"{key}=", start + 1)
        if start < 0:
            return None
        text = self.attributes[start + len(key) + 1 :]
        depth = 0
        for at, letter in enumerate(text):
            depth += (letter in "{[(") - (letter in "}])")
            if depth <= 0 and letter in ", " and at:
                return text[:at]
        return text

    def called(self, key: str) -> str | None:
        """The computation named by an attribute such as calls=, body= or condition=."""
        value = self.attribute(key)
        return value.lstrip("%") if value else None


@dataclass
class Computation:
    """Instructions in the order they run."""

    name: str
    instructions: dict[str, Instruction] = field(default_factory=dict)
    root: str = ""

    def __iter__(self) -> Iterator[Instruction]:
        return iter(self.instructions.values())

    def operand(self, instruction: Instruction, index: int = 0) -> Instruction:
        return self.instructions[instruction.operands[index]]

    def operand_bytes(self, instruction: Instruction) -> int:
        """Of all operands together."""
        return sum(self.instructions[name].size_bytes for name in instruction.operands)

    @cached_property
    def users(self) -> dict[str, list[Instruction]]:
        """Who reads each instruction."""
        users: dict[str, list[Instruction]] = {name: [] for name in self.instructions}
        for instruction in self:
            for name in set(instruction.operands):
                users[name].append(instruction)
        return users

    @cached_property
    def parameters(self) -> list[Instruction]:
        found = [instruction for instruction in self if instruction.opcode == "parameter"]
        return sorted(found, key=lambda instruction: int(instruction.literal))


@dataclass
class Module:
    """A compiled program."""

    header: str
    computations: dict[str, Computation]
    entry: Computation

    def called(self, instruction: Instruction, key: str = "calls") -> Computation | None:
        name = instruction.called(key)
        return self.computations.get(name) if name else None


def parse(text: str) -> Module:
    """Reads what `compiled.as_text()` returns."""
    header, computations, entry, current = "", {}, None, None
    for line in text.splitlines():
        if current is None:
            if line.startswith("HloModule"):
                header = line
            elif (found := _HEADER.match(line)) and not line.startswith(" "):
                current = computations[found.group(2)] = Computation(found.group(2))
                entry = current if found.group(1) else entry
        elif line == "}":  # a kernel's own metadata may go on over several lines, with braces at their beginning
            current = None
        elif found := _INSTRUCTION.match(line):
            instruction = _instruction(found.group(2), line[found.end() :], bool(found.group(1)))
            current.instructions[instruction.name] = instruction
            if instruction.is_root:
                current.root = instruction.name
    if entry is None:
        raise ValueError("this is not the text of a compiled program: it has no ENTRY computation")
    return Module(header, computations, entry)


def _instruction(name: str, text: str, is_root: bool) -> Instruction:
    end = _closing(text, 0) if text.startswith("(") else text.index(" ")
    opcode = _OPCODE.match(text, end)
    if opcode is None:
        raise ValueError(f"no operation found in the instruction %{name} = {text[:200]}")
    close = _closing(text, opcode.end() - 1)
    literal = text[opcode.end() : close - 1]
    return Instruction(
        name, opcode.group(1), text[:end], tuple(_NAME.findall(literal)), text[close:].lstrip(", "), literal, is_root
    )


def _closing(text: str, start: int) -> int:
    """The place after the parenthesis that closes the one at `start`."""
    depth = 0
    for found in re.compile(r"[()]").finditer(text, start):
        depth += 1 if found.group() == "(" else -1
        if not depth:
            return found.end()
    raise ValueError(f"a parenthesis is not closed in {text[start : start + 200]}")
