"""Sums along a row whose rounding depends on the row alone.

The order in which a compiler adds up a row may depend on how many rows there are; on CPU it does, and a record's
log-probability would then depend on its batch. There the sum is spelled out as a tree of elementwise additions, which
nothing reorders. Other backends keep their own reduction.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from engine.collectives import Axes, all_reduce, largest

_RUN = 128


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

    def of(x: Array, over: tuple[int, ...], add_up: Callable[[Array], Array]) -> Array:
        most = largest(x.max(over), axes)
        return most + jnp.log(all_reduce(add_up(jnp.exp(x - jnp.expand_dims(most, over))), axes))

    def in_runs(x: Array) -> Array:  # a few long rows would fill an eighth of a TPU's registers
        runs = lax.optimization_barrier(x.reshape(*x.shape[:-1], -1, _RUN))  # else it is one row again
        return of(runs, (-2, -1), lambda x: x.sum((-2, -1)))

    by_row = partial(of, over=(-1,), add_up=row_sum)
    return by_row(x) if x.shape[-1] % _RUN else lax.platform_dependent(x, cpu=by_row, default=in_runs)
