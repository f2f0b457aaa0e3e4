"""The feed-forwards of one chip's experts, over rows that stand in the order of the experts.

How many rows an expert gets is known on the device alone, so nothing here has a shape that depends on it, and no row is
ever left out. Few rows are taken through all experts at once, and each keeps its own expert's result: all weights have
to be read anyway, and reading them takes longer. Many rows are taken block by block, each block through one expert, by
a loop of as many steps as there are blocks. The last block of an expert reaches into the next one's rows; what it
writes there is overwritten by theirs.

On CPU it is always blocks: a block has the same shape whatever the number of rows, so a row's result does not depend on
its batch mates. `lax.ragged_dot` is not used. On CPU it takes every row through every expert. On a TPU its kernel wants
weights as [inputs, outputs], so that every call would begin with a copy of all the weights.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from engine.collectives import all_gather, largest, reduce_scatter
from engine.layout import Layout
from engine.model.activations import activation
from engine.model.config import ModelConfig
from engine.model.expert_strategy import MOST_BLOCK_ROWS
from engine.model.linear import linear
from engine.model.params import Params

FEW_ROWS = 256
"""So many rows are multiplied in the time that the weights take to be read (v5e, bf16: 197e12 / 8.1e11 = 243)."""

Product = Callable[[Array, str], Array]
"""(rows, name of a matrix) -> rows."""


def mixture(
    x: Float[Array, "tokens *embed"],
    order: Int[Array, " rows"],
    sizes: Int[Array, " experts"],
    used: Params,
    rows_per_expert: float,
    config: ModelConfig,
    layout: Layout,
) -> Float[Array, "results *embed"]:
    """Row i is x[order[i]]. The first sizes[0] rows go through the first expert, the next sizes[1] through the second.

    `used` has the matrices in use, [experts, ffn.F, embed.e]. Results are [rows, embed.e] (partialsum-F), folded if x
    is (engine/model/exchange.py). Rows beyond the sum of the sizes give anything, and so do further rows that the
    results have. `rows_per_expert` is what to expect; it changes the speed and nothing else.
    """

    blocks = partial(by_blocks, config=config, layout=layout)
    on_cpu = partial(blocks, block_rows=cpu_block_rows(rows_per_expert))
    args, rows = (x, order, sizes, used), order.shape[0]
    if rows > FEW_ROWS:
        elsewhere = partial(blocks, block_rows=accelerator_block_rows(rows_per_expert))
        return lax.platform_dependent(*args, cpu=on_cpu, default=elsewhere)
    elsewhere = partial(all_at_once, config=config, layout=layout)
    return lax.platform_dependent(*args, cpu=lambda *args: on_cpu(*args)[:rows], default=elsewhere)


def cpu_block_rows(rows_per_expert: float) -> int:
    """About as many as an expert gets, from the 8 that rounding asks for (engine/model/linear.py) to 64."""
    return min(max(8, 1 << math.floor(rows_per_expert).bit_length()), 64)


def accelerator_block_rows(rows_per_expert: float) -> int:
    """More hide the reading of the weights better (estimated for v5e: 256 rows reach 61 % of its FLOP/s, 512 88 %, 1024
    94 %), fewer leave less to be computed in vain in an expert's last block."""
    return 256 if rows_per_expert <= 256 else 512 if rows_per_expert < 4096 else MOST_BLOCK_ROWS


def by_blocks(
    x: Array, order: Array, sizes: Array, used: Params, block_rows: int, config: ModelConfig, layout: Layout
) -> Array:
    """Block after block, each through one expert."""
    experts, rows = sizes.shape[0], order.shape[0]
    spare = _spare_rows(layout)
    block_rows = _up_to(block_rows, layout.mesh.size(layout.used_embed))  # they are scattered over it
    blocks = (sizes + block_rows - 1) // block_rows
    next_expert = jnp.cumsum(blocks)
    first_row = jnp.cumsum(sizes) - sizes
    order = jnp.pad(order, (0, spare))

    def block(number: Array, results: Array) -> Array:
        own = jnp.minimum((number >= next_expert).sum(dtype=jnp.int32), experts - 1)
        at = first_row[own] + (number - (next_expert - blocks)[own]) * block_rows
        weights = jax.tree.map(lambda leaf: lax.dynamic_index_in_dim(leaf, own, keepdims=False), used)
        result = _feedforward(
            x[lax.dynamic_slice_in_dim(order, at, block_rows)].reshape(block_rows, -1),
            lambda rows, name: linear(rows, weights[name]),
            config,
            layout,
        )
        return lax.dynamic_update_slice_in_dim(results, result.reshape(-1, *x.shape[1:]), at, axis=0)

    # Chips along used_embed have the same rows and sum their products together; as this is a collective inside a loop,
    # all chips take the same number of steps. Those that are too many work behind the last expert's rows.
    steps = largest(next_expert[-1], layout.everything) if layout.used_embed else next_expert[-1]
    return lax.fori_loop(0, steps, block, lax.empty((rows + spare, *x.shape[1:]), x.dtype))


def all_at_once(x: Array, order: Array, sizes: Array, used: Params, config: ModelConfig, layout: Layout) -> Array:
    """Every row through every expert; each keeps the result of its own."""
    rows, experts = order.shape[0], sizes.shape[0]
    order = jnp.pad(order, (0, _up_to(rows, layout.mesh.size(layout.used_embed)) - rows))
    place, ends = jnp.arange(order.shape[0])[None], jnp.cumsum(sizes)[:, None]
    own = (place >= ends - sizes[:, None]) & (place < ends)  # [experts, rows]

    def product(rows: Array, name: str) -> Array:
        by_expert = jax.vmap(linear)(jnp.broadcast_to(rows, (experts, *rows.shape)), used[name])
        return jnp.where(own[:, :, None], by_expert, 0).sum(0)

    results = _feedforward(x[order].reshape(order.shape[0], -1), product, config, layout)
    return results[:rows].reshape(rows, *x.shape[1:])


def _feedforward(x: Array, product: Product, config: ModelConfig, layout: Layout) -> Array:
    """[rows, embed.e] -> [rows, embed.e] (partialsum-F)."""
    act = activation(config.activation)

    def enter(name: str) -> Array:
        return reduce_scatter(product(x, name), layout.used_embed)

    hidden = act(enter("gate")) * enter("up") if config.gated else act(enter("up"))  # [rows.e, ffn.F]
    return product(all_gather(hidden, layout.used_embed), "down")


def _spare_rows(layout: Layout) -> int:
    """Room behind the results for the overhang of the last block."""
    return _up_to(MOST_BLOCK_ROWS, layout.mesh.size(layout.used_embed))


def _up_to(size: int, multiple: int) -> int:
    return -(-size // multiple) * multiple
