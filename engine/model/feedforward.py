"""The feed-forward: down(activation(gate x) * up x) (GLU variants, Shazeer 2020), or down(activation(up x))."""

from __future__ import annotations

import math

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from engine.collectives import Axes, all_gather
from engine.model.activations import activation
from engine.model.linear import linear
from engine.model.looped import gathered_product, scattered_product
from engine.model.params import Params
from engine.model.partition import Partition, sharded

MATRICES = ("gate", "up", "down")


def feedforward(
    x: Float[Array, "tokens embed"], used: Params, layer: Params, model: Partition
) -> Float[Array, "tokens embed"]:
    """[tokens.G, embed.e] -> [tokens.G, embed.e] (partialsum-F), without the last bias; `used` has MATRICES in use."""
    if model.loops(x.shape[0]):
        return _looped(x, used, layer, model)

    over = model.layout.used_ffn

    def some(x: Array) -> Array:
        up = model.enter(x, used["up"], _bias("up", layer, over))
        act = activation(model.config.activation)
        gated = model.config.gated
        hidden = act(model.enter(x, used["gate"], _bias("gate", layer, over))) * up if gated else act(up)
        # [tokens.(G,e), ffn.F] -> [tokens.G, ffn.F]
        return linear(all_gather(hidden, model.layout.used_embed), used["down"])

    across = model.layout.mesh.size(model.layout.used_embed)  # each piece is scattered over these chips and gathered
    pieces = math.gcd(x.shape[0] // across, -(-x.shape[0] // model.micro_tokens))
    if pieces == 1:
        return some(x)
    # One after the other, but no loop: the scheduler hides no gather of weights behind a loop.
    results: list[Array] = []
    for piece in jnp.split(x, pieces):
        if results:
            piece, results[-1] = lax.optimization_barrier((piece, results[-1]))
        results.append(some(piece))
    return jnp.concatenate(results)


def _looped(x: Array, used: Params, layer: Params, model: Partition) -> Array:
    """The same, with sums scattered over ffn instead of tokens, so that every chip takes its weights only once."""
    (axis,) = model.layout.used_embed
    act, split = activation(model.config.activation), (*model.layout.used_ffn, *model.layout.used_embed)
    up = scattered_product(x, used["up"], axis, 1, _bias("up", layer, split))
    if not model.config.gated:
        return gathered_product(act(up), used["down"], axis)
    gate = scattered_product(x, used["gate"], axis, -1, _bias("gate", layer, split))
    return gathered_product(act(gate) * up, used["down"], axis)


def _bias(name: str, layer: Params, split: Axes) -> Array | None:
    return sharded(layer.get(f"{name}_bias"), (split,))
