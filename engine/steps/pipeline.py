"""A pipeline over slices: what every stage works on in a tick, and what it hands on.

Each slice is a stage with its share of the layers. All stages run one program, in ticks: a stage takes some rows
through its layers and hands the residual stream on to the next, which takes it up in the next tick. So in tick t stage
s works on what was begun in tick t - s, and what n ticks begin is finished after n + stages - 1.

    prefill   rows in micro-batches, begun one a tick; of all ticks a stage idles (stages - 1) / (n + stages - 1)
    decode    slots in as many groups as stages, each begun once every `stages` ticks: when the first stage has begun
              all groups, the last one has finished the first group, whose new token begins its next step

An idling stage works too, on something that nobody looks at. Rows are cut so that a chip's own rows of all pieces
together are the rows it would have of the whole: caches, page tables and results stay as they are without a pipeline.
"""

from __future__ import annotations

from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Int

from engine.layout import Layout

Tree = TypeVar("Tree")


def cut(rows: Array, pieces: int, layout: Layout) -> Array:
    """[rows, ...] -> [pieces, rows of a piece, ...], of which each has as many rows of every chip."""
    chips = layout.mesh.size(layout.attention_rows)
    return jnp.swapaxes(rows.reshape(chips, pieces, -1, *rows.shape[1:]), 0, 1).reshape(pieces, -1, *rows.shape[1:])


def join(pieces: Array, layout: Layout) -> Array:
    """The reverse of `cut`."""
    chips, rest = layout.mesh.size(layout.attention_rows), pieces.shape[2:]
    return jnp.swapaxes(pieces.reshape(pieces.shape[0], chips, -1, *rest), 0, 1).reshape(-1, *rest)


def place(tick: Int[Array, ""], pieces: int) -> tuple[Int[Array, ""], Int[Array, ""]]:
    """Which step, of which of the pieces, begins in a tick where the pieces take turns; before the first, the first."""
    return (jnp.maximum(tick, 0) // pieces, jnp.maximum(tick, 0) % pieces) if pieces > 1 else (tick, jnp.int32(0))


def piece(tree: Tree, at: Int[Array, ""]) -> Tree:
    """One of those that `cut` made, of every array."""

    def of(x: Any) -> Array:
        return x[0] if x.shape[0] == 1 else lax.dynamic_index_in_dim(x, at, keepdims=False)

    return jax.tree.map(of, tree)


def with_piece(tree: Tree, at: Int[Array, ""], new: Tree) -> Tree:
    """Every array with one of its pieces replaced."""

    def of(x: Any, one: Any) -> Array:
        return one[None] if x.shape[0] == 1 else lax.dynamic_update_index_in_dim(x, one, at, 0)

    return jax.tree.map(of, tree, new)
