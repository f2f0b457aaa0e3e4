"""From prefill's layout to decode's: keys and values go to the chips that will attend to them, and no further.

Each mesh axis splits one dimension of the keys and values (rows, positions or heads) before, and one after, or none,
where its chips hold copies. What stays is not touched; what moves from one dimension to another goes by all-to-all, a
copy is cut down where it is, and only what will be copied is gathered.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import jax.numpy as jnp
from jaxtyping import Array, Float

from engine.axes import MeshAxis
from engine.collectives import Axes, all_gather, all_to_all, shard
from engine.layout import Layout
from engine.model.attention_projections import own_kv_heads
from engine.model.partition import Partition

KeysOrValues = Float[Array, "rows seq kv_heads head_dim"]
Moved = Float[Array, "own_rows own_seq own_heads head_dim"]


@dataclass(frozen=True)
class _Split:
    """The mesh axes over which rows, positions and heads are split."""

    dims: tuple[Axes, Axes, Axes]

    @classmethod
    def of(cls, layout: Layout, kv_heads: int) -> _Split:
        return cls((layout.attention_rows, layout.attention_sequence, layout.kv_heads_held(kv_heads)))

    def dim(self, axis: MeshAxis) -> int | None:
        return next((dim for dim, axes in enumerate(self.dims) if axis in axes), None)


def hand_over(x: KeysOrValues, prefill: Partition, decode: Partition, page_tokens: int) -> Moved:
    """What `prefill` returned on this chip -> what this chip keeps for decode.

    Where decode splits the sequence, page b of a row belongs to chip b modulo their number.
    """
    source = _Split.of(prefill.layout, prefill.held.kv_heads)
    target = _Split.of(decode.layout, decode.held.kv_heads)
    parts = decode.layout.mesh.size(decode.layout.attention_sequence)
    if parts > 1:
        x, source = all_gather(x, source.dims[1], dim=1), _Split((source.dims[0], (), source.dims[2]))
        x = _pages_by_chip(x, parts, page_tokens)
    return own_kv_heads(_move(x, source, target, decode.layout), decode, dim=2)


def _pages_by_chip(x: KeysOrValues, parts: int, page_tokens: int) -> Moved:
    """Orders the pages so that an even cut gives each of `parts` chips its own: b, b + parts, b + 2 parts, ..."""
    rows, seq, *rest = x.shape
    x = jnp.pad(x, [(0, 0), (0, -seq % (parts * page_tokens)), (0, 0), (0, 0)])
    return jnp.swapaxes(x.reshape(rows, -1, parts, page_tokens, *rest), 1, 2).reshape(rows, -1, *rest)


def _move(x: KeysOrValues, source: _Split, target: _Split, layout: Layout) -> Moved:
    arriving: Axes = tuple(axis for axes in target.dims for axis in axes)
    leaving: Axes = tuple(axis for axes in source.dims for axis in reversed(axes) if axis not in arriving)
    gathered: tuple[list[MeshAxis], ...] = ([], [], [])
    for axis in (*arriving, *leaving):
        old, new = source.dim(axis), target.dim(axis)
        if old == new:
            continue
        if old is None:
            assert new is not None
            x = shard(x, (axis,), new)
        elif new is None:
            x = all_gather(x, (axis,), old)
        else:
            x = all_to_all(x, axis, split=new, concat=old)
        if old is not None:
            gathered[old].insert(0, axis)
    for dim, axes in enumerate(gathered):
        x = _reorder(x, dim, axes, source.dims[dim], layout)
    return x


def _reorder(x: KeysOrValues, dim: int, axes: list[MeshAxis], wanted: Axes, layout: Layout) -> Moved:
    """A dimension that was put together axis by axis stands in the order they came in; the source had another."""
    order = [axes.index(axis) for axis in wanted if axis in axes]
    if order == sorted(order):
        return x
    sizes = [layout.mesh.size((axis,)) for axis in axes]
    lead, (size, *rest) = x.shape[:dim], x.shape[dim:]
    pieces = x.reshape(*lead, *sizes, size // math.prod(sizes), *rest)
    moved = [*range(dim), *(dim + at for at in order), *range(dim + len(sizes), pieces.ndim)]
    return pieces.transpose(moved).reshape(x.shape)
