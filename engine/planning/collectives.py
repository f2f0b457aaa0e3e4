"""A collective as it is counted: what it moves, over which mesh axes, in which instructions.

Bytes are the paper's D: what an all-gather puts out on a chip, what any other collective takes in. Over several mesh
axes most collectives are issued axis by axis (engine/collectives.py), in stages that are smaller but for one; together
they put D (n - 1) / n on the wire, as one over all n chips would, but for an all-to-all, each stage of which moves D.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, NamedTuple

from engine.layout import Axes

Kind = Literal["all-gather", "reduce-scatter", "all-to-all", "all-reduce", "collective-permute"]


class Stage(NamedTuple):
    """One collective instruction."""

    kind: Kind
    axes: Axes
    chips: int
    """Along the axes."""
    bytes: int
    """D: put out by an all-gather, taken in by the others."""

    @property
    def wire_bytes(self) -> float:
        """What a chip sends, on a ring or with links to all: D (K - 1) / K, twice that for an all-reduce.

        Of a permutation all of D.
        """
        if self.kind == "collective-permute":
            return float(self.bytes)
        once = self.bytes * (self.chips - 1) / self.chips
        return 2 * once if self.kind == "all-reduce" else once


@dataclass(frozen=True)
class Collective:
    """A collective over several axes, issued in one or more stages."""

    what: str
    kind: Kind
    groups: tuple[Axes, ...]
    """The axes of each stage, major first: gathered from the last to the first, scattered from the first on."""
    sizes: tuple[int, ...]
    """Chips along the axes of each group."""
    bytes: int
    """D of the whole: the gathered array, or the array before it is scattered."""
    times: int = 1

    def repeated(self, times: int) -> Collective:
        return Collective(self.what, self.kind, self.groups, self.sizes, self.bytes, self.times * times)

    @property
    def axes(self) -> Axes:
        return tuple(axis for group in self.groups for axis in group)

    @property
    def chips(self) -> int:
        return math.prod(self.sizes)

    @property
    def stages(self) -> tuple[Stage, ...]:
        """As they are issued."""
        major_first, left = [], self.bytes
        for axes, size in zip(self.groups, self.sizes, strict=True):
            major_first.append(Stage(self.kind, axes, size, left))
            if self.kind in ("all-gather", "reduce-scatter"):
                assert left % size == 0, f"{self.what}: {left} bytes over {size} chips of {axes}"
                left //= size
        return tuple(major_first if self.kind == "reduce-scatter" else reversed(major_first))

    @property
    def wire_bytes(self) -> float:
        """What a chip sends, each time."""
        return math.fsum(stage.wire_bytes for stage in self.stages)


def wire_bytes(collectives: Iterable[Collective]) -> float:
    """What a chip sends in all."""
    return math.fsum(one.times * one.wire_bytes for one in collectives)
