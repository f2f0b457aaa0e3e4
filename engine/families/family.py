"""A published model family as data: how its config reads, and a table from its tensors' names to our parameters."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from engine.model.config import ModelConfig
from engine.model.params import Parameter, declare, leaves

_LAYER = re.compile(r"(?<=\.)\d+(?=\.)")  # the number in layers.3.query and in model.layers.3.mlp.up_proj.weight
_AXES = re.compile(r"\(([^)]*)\)|(\S+)")


@dataclass(frozen=True)
class Target:
    """The parameter a stored tensor fills, and the axes it is stored with: "(heads head_dim) embed" has two.

    Stored numbers lie in the order we keep them: filling is a reshape.
    """

    path: str
    stored: str


@dataclass(frozen=True)
class Expected:
    """A tensor that a checkpoint must hold."""

    name: str
    shape: tuple[int, ...]
    path: str
    """Of the parameter it fills."""
    parameter: Parameter


@dataclass(frozen=True)
class Family:
    """`table` and `recomputed` name tensors by pattern; {layer} stands for a layer's number."""

    architecture: str
    model_type: str
    config_from_hf: Callable[[Mapping[str, Any]], ModelConfig]
    table: Mapping[str, Target]
    recomputed: frozenset[str]
    """Tensors some checkpoints carry although they follow from the config."""

    def expected(self, config: ModelConfig) -> Iterator[Expected]:
        """Every tensor of a checkpoint with this configuration, once, in the order of our parameters."""
        by_path = {target.path: (pattern, target.stored) for pattern, target in self.table.items()}
        for path, parameter in leaves(declare(config)):
            pattern, stored = by_path[_LAYER.sub("{layer}", path)]
            layer = _LAYER.search(path)
            name = pattern.format(layer=layer.group()) if layer else pattern
            yield Expected(name, stored_shape(parameter, stored), path, parameter)

    def is_recomputed(self, name: str) -> bool:
        return _LAYER.sub("{layer}", name) in self.recomputed

    def tied_head(self, config: ModelConfig) -> str | None:
        """The name of the output head that a tied checkpoint may carry as a copy of its embedding."""
        if not config.tied_head:
            return None
        return next(name for name, target in self.table.items() if target.path == "head")


def stored_shape(parameter: Parameter, stored: str) -> tuple[int, ...]:
    """The shape of a tensor stored with these axes, of which those in brackets are merged into one."""
    sizes = dict(zip(parameter.axes, parameter.shape, strict=True))
    groups = [(merged or single).split() for merged, single in _AXES.findall(stored)]
    assert [axis for group in groups for axis in group] == list(parameter.axes), (stored, parameter.axes)
    return tuple(math.prod(sizes[axis] for axis in group) for group in groups)
