"""How often each part of a compiled program runs.

A loop of a fixed length runs as often as the compiler noted, or as its condition `i < N` says. How often one runs whose
end depends on data, whoever asks must say: by how many such loops it stands in.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace

from engine.compilation.hlo_text import Computation, Instruction, Module


class Loops:
    """Loops of a module. `assumed`: runs of a loop of unknown length inside none, one, .. of that kind; the last for
    all that are deeper."""

    def __init__(self, module: Module, assumed: Sequence[int] = (1,)) -> None:
        self.module = module
        self.unknown: dict[int, int] = {}
        """Runs assumed -> how many loops of unknown length there are for which they were."""
        self.step: Computation | None = None
        """What the first such loop repeats, if that loop stands in no other."""
        self._runs: dict[tuple[str, str], int] = {}
        self._read(module.entry, assumed)

    def executed(self, start: Computation) -> Iterator[tuple[Computation, int]]:
        """Computations that run by themselves from `start` on, and how often; what a fusion calls is part of it."""

        def walk(computation: Computation, times: int) -> Iterator[tuple[Computation, int]]:
            yield computation, times
            for instruction in computation:
                for inner, count in self.inner(computation, instruction):
                    yield from walk(inner, times * count)

        return walk(start, 1)

    def inner(self, computation: Computation, instruction: Instruction) -> list[tuple[Computation, int]]:
        """What a loop, branch or call runs, with how often; of branches all, once each."""
        if instruction.opcode not in ("while", "conditional", "call"):
            return []
        times = self._runs.get((computation.name, instruction.name), 1)
        return [(called, times) for called in _called(self.module, instruction)]

    def _read(self, computation: Computation, assumed: Sequence[int]) -> None:
        for instruction in computation:
            deeper = assumed
            if instruction.opcode == "while":
                runs = trip_count(self.module, computation, instruction)
                if runs is None:
                    runs, deeper = assumed[0], assumed[1:] or assumed[:1]
                    if computation is self.module.entry and self.step is None:
                        self.step = self.module.called(instruction, "body")
                    self.unknown[runs] = self.unknown.get(runs, 0) + 1
                self._runs[computation.name, instruction.name] = runs
            if instruction.opcode in ("while", "conditional", "call"):
                for called in _called(self.module, instruction):
                    self._read(called, deeper)


def _called(module: Module, instruction: Instruction) -> list[Computation]:
    if instruction.opcode == "conditional" and (branches := instruction.attribute("branch_computations")):
        return [module.computations[name] for name in re.findall(r"%([^\s,{}]+)", branches)]
    keys = {"while": ("body",), "call": ("to_apply",), "conditional": ("true_computation", "false_computation")}
    found = [module.called(instruction, key) for key in keys[instruction.opcode]]
    return [one for one in found if one is not None]


def trip_count(module: Module, computation: Computation, loop: Instruction) -> int | None:
    """How often a loop runs; None if its text does not tell."""
    known = re.search(r'"known_trip_count":\{"n":"?(\d+)', loop.attributes)
    if known:
        return int(known.group(1))
    condition = module.called(loop, "condition")
    compare = _comparison(module, condition) if condition is not None else None
    if condition is None or compare is None or "direction=LT" not in compare.attributes:
        return None
    counter, limit = (condition.operand(compare, index) for index in range(2))
    first = _start(computation, loop, counter)
    last = _number(limit) if limit.opcode == "constant" else _start(computation, loop, limit)
    return None if first is None or last is None else max(last - first, 0)


def _comparison(module: Module, condition: Computation) -> Instruction | None:
    """The comparison that a condition consists of, with operands in the condition; it may stand alone in a fusion."""
    root = condition.instructions[condition.root]
    if root.opcode == "compare":
        return root
    fused = module.called(root) if root.opcode == "fusion" else None
    inner = fused.instructions[fused.root] if fused else None
    if fused is None or inner is None or inner.opcode != "compare":
        return None
    passed = [fused.operand(inner, index) for index in range(2)]
    if any(one.opcode != "parameter" for one in passed):
        return None
    return replace(inner, operands=tuple(root.operands[int(one.literal)] for one in passed))


def _start(computation: Computation, loop: Instruction, part: Instruction) -> int | None:
    """The number that a part of the loop's state starts as, if it is a constant."""
    state = computation.operand(loop)
    if part.opcode != "get-tuple-element" or state.opcode != "tuple":
        return None
    value = computation.operand(state, int(part.attribute("index") or 0))
    while value.opcode in ("copy", "bitcast"):
        value = computation.operand(value)
    return _number(value) if value.opcode == "constant" else None


def _number(constant: Instruction) -> int | None:
    return int(constant.literal) if re.fullmatch(r"-?\d+", constant.literal) else None
