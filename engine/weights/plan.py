"""What is filled from what, before anything is read: parameters and tensors in groups, in the order they are taken."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from engine.families.family import Fill
from engine.layout import HeldSizes
from engine.model.config import ModelConfig
from engine.model.params import Parameter, declare, leaves
from engine.weights.destination import Destination
from engine.weights.filling import Filled, Filling, fillings
from engine.weights.matching import Matched, Source

_LAYER = re.compile(r"layers\.(\d+)\.(.+)")


@dataclass(frozen=True)
class Group:
    """Parameters that are filled at the same time, since they share a tensor, and all they are filled from."""

    filled: Sequence[Filled]
    fillings: Sequence[Filling]

    @property
    def size_bytes(self) -> int:
        return sum(one.size_bytes for one in self.filled)


def plan(
    matched: Matched,
    config: ModelConfig,
    held: HeldSizes | None,
    to: Destination,
    dtype_of: Callable[[Parameter], np.dtype],
    skipped_bytes: int,
) -> list[Group]:
    """Everything that is wanted at the destination, in the order of the files; `dtype_of` says how it is held."""
    declared: dict[str, Parameter] = dict(leaves(declare(config, held)))
    stages = held.stages if held else 1
    unpadded = HeldSizes(config.heads, config.kv_heads, config.vocab, stages)
    stored: dict[str, Parameter] = dict(leaves(declare(config, unpadded)))
    wanted = matched.sources
    if stages > 1:
        wanted = {path: _of_stages(source, config.layers // stages, stored) for path, source in wanted.items()}

    def filled(path: str) -> Filled:
        parameter = declared[path]
        dtype = dtype_of(parameter)
        scale_boxes = to.scale_boxes(parameter) if dtype == np.int8 else ()
        return Filled(path, parameter, to.boxes(parameter), scale_boxes, dtype, parameter != stored[path])

    groups = []
    for sources in _together(wanted.values()):
        paths = dict.fromkeys(fill.path for source in sources for fill in source.fills)
        by_path = {path: filled(path) for path in paths}
        read: list[Filling] = []
        for source in sources:
            copy = matched.head_copy if source is wanted["embedding"] else None
            read += fillings(source, by_path, config, held, copy, skipped_bytes)
        groups.append(Group(list(by_path.values()), read))
    return groups


def _of_stages(source: Source, layers: int, stored: Mapping[str, Parameter]) -> Source:
    """What a tensor fills where every stage of several has so many layers."""

    def of(fill: Fill) -> Fill:
        found = _LAYER.fullmatch(fill.path)
        if found is None:
            return fill
        stage, layer = divmod(int(found[1]), layers)
        path = f"layers.{layer}.{found[2]}"
        return replace(fill, path=path, parameter=stored[path], stage=stage)

    return replace(source, fills=tuple(map(of, source.fills)))


def _together(sources: Iterable[Source]) -> list[list[Source]]:
    """Sources that share a parameter together; otherwise in the order of their files, as those of a group are too."""
    group_of: dict[str, list[Source]] = {}
    for source in sorted(sources, key=_place):
        group = [source]
        for other in {id(found): found for fill in source.fills if (found := group_of.get(fill.path))}.values():
            group = [*other, *group]
        group_of |= {fill.path: group for one in group for fill in one.fills}
    groups = {id(group): group for group in group_of.values()}
    return sorted((sorted(group, key=_place) for group in groups.values()), key=lambda group: _place(group[0]))


def _place(source: Source) -> tuple[str, int]:
    return source.tensor.file, source.tensor.start
