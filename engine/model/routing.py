"""Which tokens go to which expert, and the order that puts the tokens of an expert side by side."""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from engine.collectives import all_reduce, shard
from engine.layout import Axes
from engine.model.linear import linear
from engine.model.reductions import row_sum


class Routes(NamedTuple):
    """The experts of each token, most liked first; of two alike the one with the lower number."""

    experts: Int[Array, "tokens per_token"]
    weights: Float[Array, "tokens per_token"]  # float32, positive, each token's sum to one


def route(
    x: Float[Array, "tokens embed"], router: Float[Array, "experts whole_embed"], per_token: int, used_embed: Axes
) -> Routes:
    """Softmax over the logits of the `per_token` best, in float32: the softmax over all, brought to sum one again.

    x is [tokens, embed.e], the router whole. Chips that hold the same tokens must come to the same routes. Those along
    e do because a sum over axes is one value for all of them, the others because they compute the same thing.
    """
    logits = linear(x, shard(router, used_embed, dim=1), out_dtype=jnp.dtype(jnp.float32))
    best, experts = lax.top_k(all_reduce(logits, used_embed), per_token)
    weights = jnp.exp(best - best[:, :1])
    return Routes(experts, weights / row_sum(weights)[:, None])


class Sorted(NamedTuple):
    """Pairs of a token and an expert of its, in the order of the experts `first` to `first + experts - 1`.

    Pairs with other experts come last and count for nothing.
    """

    tokens: Int[Array, " pairs"]  # the token of each place in the order
    sizes: Int[Array, " experts"]  # how many pairs an expert has
    places: Int[Array, "tokens per_token"]  # where in the order a token's pair is
    here: Bool[Array, "tokens per_token"]  # whether its expert is one of these


def sort_by_expert(chosen: Int[Array, "tokens per_token"], first: Int[Array, ""] | int, experts: int) -> Sorted:
    tokens, per_token = chosen.shape
    own = chosen - first
    here = (own >= 0) & (own < experts)
    flat = jnp.where(here, own, experts).reshape(-1)
    order = jnp.argsort(flat, stable=True).astype(jnp.int32)
    places = jnp.zeros_like(order).at[order].set(jnp.arange(order.size, dtype=jnp.int32), unique_indices=True)
    sizes = (flat[:, None] == jnp.arange(experts)[None]).sum(0, dtype=jnp.int32)
    return Sorted(order // per_token, sizes, jnp.where(here, places.reshape(tokens, per_token), 0), here)


def combine(
    results: Float[Array, "rows *embed"], pairs: Sorted, weights: Float[Array, "tokens per_token"]
) -> Float[Array, "tokens embed"]:
    """The weighted sum of what a token's experts made of it, in float32; experts that are not here add nothing.

    `results` stand in the order of `pairs`; rows that belong to no pair may hold anything.
    """
    tokens, per_token = pairs.places.shape
    total = jnp.zeros((1, 1), jnp.float32)
    for nth in range(per_token):
        here = pairs.here[:, nth, None]
        of_token = jnp.where(here, results[pairs.places[:, nth]].reshape(tokens, -1), 0)
        total = total + of_token.astype(jnp.float32) * weights[:, nth, None]
    return total.astype(results.dtype)
