"""Loading straight to shards: each process fills the boxes of its own devices, and global arrays are made of those."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec, Sharding

from engine.model.params import Parameter
from engine.weights.boxes import Box
from engine.weights.destination import scale_of


@dataclass(frozen=True)
class Shards:
    """Arrays with the shardings asked for. A box that several devices hold is read once.

    `sharding` is asked for parameters, and for int8 ones also for a declaration of their scales, which have the axes
    of their outputs.
    """

    sharding: Callable[[Parameter], Sharding]

    def boxes(self, parameter: Parameter) -> Sequence[Box]:
        return _boxes(self.sharding(parameter), parameter.shape)

    def scale_boxes(self, parameter: Parameter) -> Sequence[Box]:
        return _boxes(self._scale_sharding(parameter), scale_of(parameter).shape)

    def place(self, path: str, parameter: Parameter, parts: Mapping[Box, np.ndarray]) -> jax.Array:
        return _placed(self.sharding(parameter), parameter.shape, parts)

    def place_scale(self, path: str, parameter: Parameter, parts: Mapping[Box, np.ndarray]) -> jax.Array:
        return _placed(self._scale_sharding(parameter), scale_of(parameter).shape, parts)

    def whole_scale(self, parameter: Parameter, placed: jax.Array) -> jax.Array:
        wanted = self.sharding(scale_of(parameter))
        if placed.sharding.is_equivalent_to(wanted, placed.ndim):
            return placed
        return jax.jit(_same, out_shardings=wanted)(placed)  # between processes only a program can move numbers

    def _scale_sharding(self, parameter: Parameter) -> Sharding:
        """How scales are loaded: where they are wanted, unless other processes read other channels."""
        of_values = self.sharding(parameter)
        if of_values.is_fully_addressable or not isinstance(of_values, NamedSharding):
            return self.sharding(scale_of(parameter))
        outputs = len(parameter.shape) - parameter.inputs
        return NamedSharding(of_values.mesh, PartitionSpec(*of_values.spec[:outputs]))


def _same(array: jax.Array) -> jax.Array:
    return array


def _box(index: tuple[slice, ...], shape: Sequence[int]) -> Box:
    return tuple(part.indices(size)[:2] for part, size in zip(index, shape, strict=True))


def _boxes(sharding: Sharding, shape: tuple[int, ...]) -> list[Box]:
    indices = sharding.addressable_devices_indices_map(shape).values()
    return sorted({_box(index, shape) for index in indices if index is not None})


def _placed(sharding: Sharding, shape: tuple[int, ...], parts: Mapping[Box, np.ndarray]) -> Any:
    indices = sharding.addressable_devices_indices_map(shape)
    arrays = jax.device_put(
        [parts[_box(index, shape)] for index in indices.values() if index is not None], list(indices)
    )
    jax.block_until_ready(arrays)  # the numbers on the host are given up
    return jax.make_array_from_single_device_arrays(shape, sharding, arrays)
