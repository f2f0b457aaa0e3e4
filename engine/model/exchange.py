"""Rows sent to the chips that hold their experts, and their results sent back: all-to-all, with unequal numbers.

Rows leave in the order of the experts, so each expert's rows are one slice, and arrive in that order too: the slices
that an expert gets from all chips lie one after the other. Both ways the offsets follow from one table, how many rows
each chip has for each expert. Space is there for the most rows that can come; only real ones are sent.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from engine import collectives
from engine.layout import Axes


class Slices(NamedTuple):
    """One end of the exchange: for each slice where it starts and how many rows it has, and where it is to arrive.

    Slices to (and from) one chip are neighbours, chips in their order along the axes.
    """

    starts: Int[Array, " slices"]
    sizes: Int[Array, " slices"]
    arrive_at: Int[Array, " slices"]


class Exchange(NamedTuple):
    there: Slices
    back: Slices
    sizes: Int[Array, " experts_here"]  # rows that each expert of this chip gets, from all chips


def plan_exchange(sizes: Int[Array, " experts"], axes: Axes) -> Exchange:
    """`sizes`: how many rows this chip has for each expert; experts are split over the axes."""
    chips = lax.axis_size(axes)
    here = sizes.shape[0] // chips
    table = collectives.all_gather(sizes[None], axes)  # [from chip, expert]
    # Where an expert's slice starts at the chip it comes from, and where it arrives: after the experts before it on
    # the same chip, and after the slices of the chips before its own.
    starts = jnp.cumsum(table, axis=1) - table
    per_expert = table.sum(0).reshape(chips, here)
    before = (jnp.cumsum(per_expert, axis=1) - per_expert).reshape(1, -1)
    arrivals = before + jnp.cumsum(table, axis=0) - table

    me = collectives.index(axes)

    def sent_from_me(x: Array) -> Array:
        return lax.dynamic_index_in_dim(x, me, axis=0, keepdims=False)

    def sent_to_me(x: Array) -> Array:
        return lax.dynamic_slice_in_dim(x, me * here, here, axis=1).reshape(-1)

    return Exchange(
        Slices(sent_from_me(starts), sent_from_me(table), sent_from_me(arrivals)),
        Slices(sent_to_me(arrivals), sent_to_me(table), sent_to_me(starts)),
        sent_from_me(per_expert),
    )


def fold(rows: Float[Array, "rows embed"]) -> Float[Array, "rows packed part"]:
    """The form in which a TPU sends single rows, each in one piece of memory. It folds them itself if they are not, but
    all there is space for, not only those that come."""
    packed = math.gcd(rows.shape[1], max(1, 4 // rows.dtype.itemsize))
    return rows.reshape(rows.shape[0], packed, -1)


def send(
    rows: Float[Array, "rows *embed"], out: Slices, returned: Slices, space: int, axes: Axes
) -> Float[Array, "space *embed"]:
    """Slices `out` of the rows go to their chips; this chip gets those that `returned` would send back."""
    return lax.platform_dependent(
        rows, cpu=lambda rows: _by_all_gather(rows, out, space, axes),
        default=lambda rows: lax.ragged_all_to_all(
            rows, lax.empty((space, *rows.shape[1:]), rows.dtype), *out, returned.sizes, axis_name=axes
        ),
    )  # fmt: skip


def _by_all_gather(rows: Array, out: Slices, space: int, axes: Axes) -> Array:
    """`lax.ragged_all_to_all` where the compiler has none: every chip gets all rows and takes its own."""
    everything = collectives.all_gather(rows, axes)
    here = out.starts.shape[0] // lax.axis_size(axes)
    starts, sizes, arrive_at = (
        lax.dynamic_slice_in_dim(collectives.all_gather(x[None], axes), collectives.index(axes) * here, here, axis=1)
        for x in out
    )
    offset = jnp.arange(space)[:, None, None] - arrive_at[None]  # [place, from chip, slice]
    from_row = (jnp.arange(starts.shape[0]) * rows.shape[0])[None, :, None] + starts[None] + offset
    found = (offset >= 0) & (offset < sizes[None])
    return everything[jnp.where(found, from_row, 0).sum((1, 2))]
