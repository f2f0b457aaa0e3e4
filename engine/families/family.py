"""A published model family as data: how its config reads, and a table from its tensors' names to our parameters.

The table says of every stored tensor which parameter it fills and what axes it is stored with; sizes come from the
parameter's declaration. From it follow the shape a tensor must have and where each of its numbers goes.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, cast

from engine.axes import Axis
from engine.model.config import ModelConfig
from engine.model.params import Parameter, declare, leaves

StoredAxes = tuple[tuple[Axis, ...], ...]
"""For every dimension of a stored tensor the axes that are merged in it, major first."""

_LAYER = re.compile(r"(?<=\.)\d+(?=\.)")  # the number in layers.3.query
_AXES = re.compile(r"\(([^)]*)\)|(\S+)")


@dataclass(frozen=True)
class Target:
    """The parameter a stored tensor fills, and the axes it is stored with, brackets merging some into one dimension.

    "(heads head_dim) embed" is a matrix with the rows of all heads one after the other. In another order than the
    parameter's, "embed (heads head_dim)", it is transposed while it is loaded. Merged axes are neighbours in the
    parameter, in the same order. Where the tensor's name has an {expert}, the tensor is one expert's, and `experts` is
    not among its axes.
    """

    path: str
    stored: str


@dataclass(frozen=True)
class Concatenated:
    """A stored tensor in which several parameters follow each other along one of its dimensions."""

    dim: int
    targets: tuple[Target, ...]


Entry = Target | Concatenated


@dataclass(frozen=True)
class Fill:
    """What a stored tensor gives to one parameter."""

    path: str
    parameter: Parameter
    stored: StoredAxes
    starts: tuple[int, ...]
    """Where the parameter begins in each stored dimension: not at 0 behind another one that it is concatenated to."""
    expert: int | None = None
    """The one index of the experts axis that is filled, if it is only one."""
    stage: int | None = None
    """The one index of the stages axis that is filled, if the parameter has one: a tensor is of one layer."""

    @property
    def only(self) -> Mapping[Axis, int]:
        """Axes of which one index is filled."""
        found: dict[Axis, int | None] = {"experts": self.expert, "stages": self.stage}
        return {axis: index for axis, index in found.items() if index is not None}

    @property
    def shape(self) -> tuple[int, ...]:
        sizes = dict(zip(self.parameter.axes, self.parameter.shape, strict=True))
        return tuple(math.prod(sizes[axis] for axis in merged) for merged in self.stored)


@dataclass(frozen=True)
class Expected:
    """A tensor that a checkpoint must hold."""

    name: str
    shape: tuple[int, ...]
    fills: tuple[Fill, ...]

    @property
    def path(self) -> str:
        """What it fills, in words that are the same however a family calls its tensors."""
        expert = self.fills[0].expert
        return "+".join(fill.path for fill in self.fills) + ("" if expert is None else f".{expert}")

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def axes(self) -> str:
        """The axes of its dimensions, to be read by people."""
        dims = zip(*(fill.stored for fill in self.fills), strict=True)
        return ", ".join(" + ".join(dict.fromkeys(" x ".join(merged) for merged in dim)) for dim in dims)


@dataclass(frozen=True)
class Family:
    """`table` and `recomputed` name tensors by pattern; {layer} and {expert} stand for a number."""

    architecture: str
    model_type: str
    config_from_hf: Callable[[Mapping[str, Any]], ModelConfig]
    table: Mapping[str, Entry]
    recomputed: frozenset[str]
    """Tensors some checkpoints carry although they follow from the config."""
    optional_prefix: str = ""
    """Leads every name in some checkpoints, and none in others; the table and `recomputed` are without it."""

    def expected(self, config: ModelConfig) -> Iterator[Expected]:
        """Every tensor of a checkpoint with this configuration, once, in the order of our parameters."""
        declared = dict(leaves(declare(config)))
        seen: set[str] = set()
        for path, parameter in declared.items():
            pattern = self._pattern_of[_LAYER.sub("{layer}", path)]
            layer = _LAYER.search(path)
            experts = range(parameter.shape[parameter.axes.index("experts")]) if "{expert}" in pattern else (None,)
            for expert in experts:
                name = pattern.format(layer=layer and layer.group(), expert=expert)
                if name not in seen:  # otherwise it came with another parameter that it fills too
                    seen.add(name)
                    yield _expected(name, self.table[pattern], layer and layer.group(), expert, declared)

    def is_recomputed(self, name: str) -> bool:
        return self._recomputed.fullmatch(name) is not None

    def tied_head(self, config: ModelConfig) -> str | None:
        """The name of the output head that a tied checkpoint may carry as a copy of its embedding."""
        return self._pattern_of.get("head") if config.tied_head else None

    @cached_property
    def _pattern_of(self) -> dict[str, str]:
        """The name of the tensor that fills a parameter, both as patterns."""
        by_path: dict[str, str] = {}
        for pattern, entry in self.table.items():
            for target in _targets(entry):
                assert target.path not in by_path, f"{target.path} is filled by {by_path[target.path]} and {pattern}"
                by_path[target.path] = pattern
        return by_path

    @cached_property
    def _recomputed(self) -> re.Pattern[str]:
        patterns = (re.escape(name).replace(r"\{layer\}", r"(0|[1-9]\d*)") for name in self.recomputed)
        return re.compile("|".join(patterns) or r"(?!)")


def _targets(entry: Entry) -> tuple[Target, ...]:
    return entry.targets if isinstance(entry, Concatenated) else (entry,)


def _expected(
    name: str, entry: Entry, layer: str | None, expert: int | None, declared: Mapping[str, Parameter]
) -> Expected:
    fills = []
    for target in _targets(entry):
        path = target.path.format(layer=layer)
        stored = _stored_axes(target.stored, declared[path], expert)
        fills.append(Fill(path, declared[path], stored, (0,) * len(stored), expert))
    shape = list(fills[0].shape)
    if isinstance(entry, Concatenated):
        ends = [0]
        for at, fill in enumerate(fills):
            starts = (*fill.starts[: entry.dim], ends[-1], *fill.starts[entry.dim + 1 :])
            fills[at] = replace(fill, starts=starts)
            ends.append(ends[-1] + fill.shape[entry.dim])
            shape[entry.dim] = fill.shape[entry.dim]
            assert shape == list(fill.shape), f"{name}: {fill.path} cannot be concatenated to {fills[0].path}"
        shape[entry.dim] = ends[-1]
    return Expected(name, tuple(shape), tuple(fills))


def _stored_axes(text: str, parameter: Parameter, expert: int | None) -> StoredAxes:
    """Reads the axes of a Target; each of the parameter's must occur once, and merged ones as neighbours."""
    stored = tuple(tuple((merged or single).split()) for merged, single in _AXES.findall(text))
    axes = tuple(axis for axis in parameter.axes if expert is None or axis != "experts")
    assert sorted(axis for merged in stored for axis in merged) == sorted(axes), (text, parameter.axes)
    for merged in stored:
        start = axes.index(cast(Axis, merged[0]))
        assert merged == axes[start : start + len(merged)], (text, parameter.axes)
    return cast(StoredAxes, stored)
