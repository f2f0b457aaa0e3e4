"""Sums along a row whose rounding depends on the row alone.

The order in which a compiler adds up a row may depend on how many rows there are; on CPU it does, and a record's
log-probability would then depend on its batch. There the sum is spelled out as a tree of elementwise additions, which
nothing reorders. Other backends keep their own reduction.
"""

from __future__ import annotations

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from engine.collectives import Axes, all_reduce, largest


def row_sum(x: Float[Array, "*rows columns"]) -> Float[Array, "*rows"]:
    """Sum over the last axis."""
    return lax.platform_dependent(x, cpu=_tree_sum, default=lambda x: x.sum(-1))


def _tree_sum(x: Float[Array, "*rows columns"]) -> Float[Array, "*rows"]:
    """Adds the second half to the first until one column is left."""
    width = 1 << (x.shape[-1] - 1).bit_length()
    x = jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, width - x.shape[-1])])
    while width > 1:
        width //= 2
        x = x[..., :width] + x[..., width:]
    return x[..., 0]


def log_sum_exp(x: Float[Array, "*rows columns"], axes: Axes = ()) -> Float[Array, "*rows"]:
    """log(sum(exp(x))) over the last axis, which may be split over mesh axes; the largest element must be finite."""
    most = largest(x.max(-1), axes)
    return most + jnp.log(all_reduce(row_sum(jnp.exp(x - most[..., None])), axes))
