"""Looped collective einsums: a product and the collective beside it as one ring, so that each hides behind the other.

A matrix is taken chunk by chunk along the dimension that the collective splits or joins. While a chunk's product is
computed, what the last one left is on its way to the next chip (Wang et al. 2023, "Overlap Communication with Dependent
Computation via Decomposition"; Pope et al. 2022, section 3.5). Each chip takes every chunk once, each at another time.

The TPU compiler hides gathers and permutations behind products, but no reduce-scatter. Where a step's products take
about as long as their collectives, as in decode, that is a fifth of the step (docs/partitioning.md).
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from engine.axes import MeshAxis
from engine.model.linear import linear
from engine.model.quantized import Quantized, parts

Weight = Array | Quantized

REDUCE_SCATTER, ALL_GATHER = "looped_reduce_scatter", "looped_all_gather"
"""How a compiled program names the permutations that together are such a collective."""

_FLOAT32 = jnp.dtype(jnp.float32)


def scattered_product(
    x: Float[Array, "tokens embed"],
    weight: Weight,
    axis: MeshAxis,
    direction: int,
    bias: Array | None = None,
) -> Float[Array, "tokens outputs"]:
    """[tokens, embed.axis], [outputs, embed.axis] -> [tokens, outputs.axis]: `linear`, summed over the axis and
    scattered over the outputs. `bias` is that of this chip's outputs.

    Sums travel in `direction`, 1 or -1: of two such products side by side, each has its own links.
    """
    chips, here = lax.axis_size(axis), lax.axis_index(axis)

    def part(hops_to_go: int) -> Array:
        return linear(x, _outputs(weight, (here + direction * hops_to_go) % chips, chips), out_dtype=_FLOAT32)

    total = part(chips - 1)
    for hops_to_go in reversed(range(chips - 1)):
        arrived = _hop(total.astype(x.dtype), axis, direction, REDUCE_SCATTER)
        total = arrived.astype(_FLOAT32) + part(hops_to_go)
    if bias is not None:
        total = total + bias.astype(_FLOAT32)[None]
    return total.astype(x.dtype)


def gathered_product(
    x: Float[Array, "tokens inputs"], weight: Weight, axis: MeshAxis
) -> Float[Array, "tokens outputs"]:
    """[tokens, inputs.axis], [outputs, inputs] -> [tokens, outputs]: `linear` of x gathered over the axis."""
    chips, here = lax.axis_size(axis), lax.axis_index(axis)

    def part(piece: Array, whose: Int[Array, ""]) -> Array:
        return linear(piece, _inputs(weight, whose % chips, chips), out_dtype=_FLOAT32)

    total = part(x, here)
    there = back = x  # half of the pieces come from either side
    for hops in range(1, chips // 2 + 1):
        there = _hop(there, axis, 1, ALL_GATHER)
        total = total + part(there, here - hops)
        if 2 * hops < chips:
            back = _hop(back, axis, -1, ALL_GATHER)
            total = total + part(back, here + hops)
    return total.astype(x.dtype)


def _hop(x: Array, axis: MeshAxis, direction: int, name: str) -> Array:
    chips = lax.axis_size(axis)
    with jax.named_scope(name):
        return lax.ppermute(x, axis, [(chip, (chip + direction) % chips) for chip in range(chips)])


def _outputs(weight: Weight, chunk: Int[Array, ""], chunks: int) -> Weight:
    return jax.tree.map(functools.partial(_chunk, chunk=chunk, chunks=chunks, dim=0), weight)


def _inputs(weight: Weight, chunk: Int[Array, ""], chunks: int) -> Weight:
    values, scale = parts(weight)
    values = _chunk(values, chunk, chunks, dim=1)
    return values if scale is None else Quantized(values, scale)


def _chunk(x: Array, chunk: Int[Array, ""], chunks: int, dim: int) -> Array:
    size = x.shape[dim] // chunks
    return lax.dynamic_slice_in_dim(x, chunk * size, size, dim)
