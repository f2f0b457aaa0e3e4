"""Where loaded numbers are to stand: which boxes of a parameter are wanted here, and who takes them once filled."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np

from engine.model.params import Parameter
from engine.weights.boxes import Box, whole

Place = Callable[[str, np.ndarray], Any]
"""Takes a parameter's path and its numbers; returns what stands in the tree: the array itself, or one on a device."""


@runtime_checkable
class Destination(Protocol):
    """Parameters are declared as they are held, padding included.

    The scales of an int8 parameter have the shape of its outputs (`scale_of`) and are asked for and placed apart.
    """

    def boxes(self, parameter: Parameter) -> Sequence[Box]:
        """The boxes wanted here, each once."""
        ...

    def scale_boxes(self, parameter: Parameter) -> Sequence[Box]: ...

    def place(self, path: str, parameter: Parameter, parts: Mapping[Box, np.ndarray]) -> Any:
        """Takes all boxes of a parameter; called by the thread that loads, in the same order in every process."""
        ...

    def place_scale(self, path: str, parameter: Parameter, parts: Mapping[Box, np.ndarray]) -> Any: ...

    def whole_scale(self, parameter: Parameter, placed: Any) -> Any:
        """Called when everything is placed: gathers a scale of which each process had a part."""
        ...


def scale_of(parameter: Parameter) -> Parameter:
    """The declaration of an int8 parameter's scales: one for each output."""
    return Parameter(parameter.shape[: -parameter.inputs], parameter.axes[: -parameter.inputs])


@dataclass(frozen=True)
class OnHost:
    """Whole parameters, handed one by one to `place_one`."""

    place_one: Place

    def boxes(self, parameter: Parameter) -> Sequence[Box]:
        return [whole(parameter.shape)]

    def scale_boxes(self, parameter: Parameter) -> Sequence[Box]:
        return [whole(scale_of(parameter).shape)]

    def place(self, path: str, parameter: Parameter, parts: Mapping[Box, np.ndarray]) -> Any:
        (array,) = parts.values()
        return self.place_one(path, array)

    def place_scale(self, path: str, parameter: Parameter, parts: Mapping[Box, np.ndarray]) -> Any:
        return self.place(f"{path}.scale", parameter, parts)

    def whole_scale(self, parameter: Parameter, placed: Any) -> Any:
        return placed
