"""Collectives over several mesh axes, staged as a torus of chips likes them, inside a shard_map.

Over no axis each of them is the identity, so a program for one chip is the same code with nothing in it. A dimension
that is sharded over (a, b) has a as its major axis: shard i of a, then shard j of b within it.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Int

from engine.axes import FEW_ROWS, RUN, MeshAxis, scattered_together

Axes = tuple[MeshAxis, ...]


def all_gather(x: Array, axes: Axes, dim: int = 0) -> Array:
    """[.. dim.axes ..] -> [.. dim ..].

    Two axes go in one operation, which uses the rings of both at once; of three, the minor one goes before.
    """
    for some in (axes[2:], axes[:2]):
        if some:
            x = lax.all_gather(x, some, axis=dim, tiled=True)
    return x


def reduce_scatter(x: Array, axes: Axes, dim: int = 0) -> Array:
    """[.. dim ..] (partialsum-axes) -> [.. dim.axes ..].

    One axis after the other, or some over two at once; on CPU never: there sums of two are the same to the bit however
    many processes share in them, and those of four are not.
    """
    staged: tuple[Axes, ...] = tuple((axis,) for axis in axes)
    together = scattered_together(axes, x.nbytes, jax.sharding.get_abstract_mesh().shape)
    if together == staged:
        return _scattered(x, staged, dim)
    return lax.platform_dependent(
        x, cpu=partial(_scattered, stages=staged, dim=dim), default=partial(_scattered, stages=together, dim=dim)
    )


def _scattered(x: Array, stages: tuple[Axes, ...], dim: int) -> Array:
    """The shards are made a dimension of their own: scattered so, a TPU sends exactly the shards.

    Scattering a dimension that is tiled in memory, it pads them and moves the overhang in a second step, or, below 8
    rows a shard, sends everything everywhere; so few rows are scattered as one long run of numbers.
    """
    for some in stages:
        parts = lax.axis_size(some)
        size = x.shape[dim] // parts
        shape = (*x.shape[:dim], size, *x.shape[dim + 1 :])
        runs = (RUN, 128) if x.size >= parts * FEW_ROWS * RUN else (128,)
        run = next((run for run in runs if x.size % (parts * run) == 0), None)
        if dim == 0 and size < FEW_ROWS and run:
            pieces = x.reshape(parts, -1, run)
        elif dim == 0 and x.ndim > 2:  # the compiler might tile any of its dimensions, the first too
            pieces = x.reshape(parts, size, -1)
        else:
            pieces = x.reshape(*x.shape[:dim], parts, size, *x.shape[dim + 1 :])
        x = lax.psum_scatter(pieces, some, scatter_dimension=dim, tiled=False).reshape(shape)
    return x


def all_reduce(x: Array, axes: Axes) -> Array:
    """Sums over the axes; every chip has the sum."""
    return lax.psum(x, axes) if axes else x


def largest(x: Array, axes: Axes) -> Array:
    """Elementwise maximum over the axes; every chip has it."""
    return lax.pmax(x, axes) if axes else x


def all_to_all(x: Array, axis: MeshAxis, split: int, concat: int) -> Array:
    """[.. concat.axis .. split ..] -> [.. concat .. split.axis ..].

    The parts are made the first dimension, in which they are sent and arrive: split and joined elsewhere, a TPU lays
    small arrays out anew three times.
    """
    parts = lax.axis_size(axis)
    by_part = x.reshape(*x.shape[:split], parts, x.shape[split] // parts, *x.shape[split + 1 :])
    there = lax.all_to_all(jnp.moveaxis(by_part, split, 0), axis, split_axis=0, concat_axis=0, tiled=True)
    back = jnp.moveaxis(there, 0, concat)
    return back.reshape(*back.shape[:concat], parts * back.shape[concat + 1], *back.shape[concat + 2 :])


def hand_on(x: Array, axis: MeshAxis) -> Array:
    """Each shard's array goes to the next one; the last one's goes nowhere, and the first gets zeros."""
    return lax.ppermute(x, axis, [(at, at + 1) for at in range(lax.axis_size(axis) - 1)])


def from_last(x: Array, axes: Axes) -> Array:
    """The last shard's array, on all of them."""
    return lax.all_gather(x, axes)[-1] if axes else x


def index(axes: Axes) -> Int[Array, ""]:
    """Which shard of a dimension over these axes is this chip's."""
    at = jnp.int32(0)
    for axis in axes:
        at = at * lax.axis_size(axis) + lax.axis_index(axis)
    return at


def shard(x: Array, axes: Axes, dim: int = 0) -> Array:
    """This chip's part of an array that every chip holds whole. Nothing is sent."""
    if not axes:
        return x
    size = x.shape[dim] // lax.axis_size(axes)
    return lax.dynamic_slice_in_dim(x, index(axes) * size, size, axis=dim)
