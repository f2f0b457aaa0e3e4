"""The decoder, top to bottom, on one chip or many. What attends to what is the caller's: prefill, decode and score each
hand in `attend`.

Tokens are one flat axis here; rows and slots exist only inside `attend`. Between blocks stands the residual stream,
[tokens.tokens, embed.used_embed] of the layout. Embedding table and output head stay where they rest in every layout:
few of their numbers are needed for a token, or few tokens need them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import reduce

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from engine.collectives import Axes, all_gather, all_to_all, index, reduce_scatter, shard
from engine.model.attention_projections import back, keys_or_values, queries
from engine.model.experts import experts
from engine.model.feedforward import MATRICES, feedforward
from engine.model.linear import linear, take
from engine.model.norms import norm
from engine.model.params import Params
from engine.model.partition import Partition
from engine.model.positions import Rotation, rotate, rotation

Attend = Callable[[int, Array, Array, Array], Array]
"""(layer of the stage, q [tokens, heads, head_dim], k and v [tokens, kv_heads, head_dim]) -> [tokens, heads, head_dim],
of this chip (see attention_projections)."""

_LOOKED_UP_TOKENS = 16384

LAYER_SCOPE = "layer"
"""What a compiled program calls the operations of layer 7: layer7/..."""

ATTENTION = ("query", "key", "value", "attention_out")


def residual_stream(
    params: Params,
    model: Partition,
    tokens: Int[Array, " tokens"],
    positions: Int[Array, " tokens"],
    attend: Attend,
    arrived: Float[Array, "residual_tokens embed"] | None = None,
) -> Float[Array, "residual_tokens embed"]:
    """What stands after the last layer that `params` has: a stage's. All chips of the stage are given all tokens.

    The first stage begins with the tokens' embeddings, any other with what `arrived` from the one before it.
    """
    layout, config = model.layout, model.config
    x = _embed(params, model, tokens, positions)
    if arrived is not None:
        x = jnp.where(index(layout.over_slices) == 0, x, arrived)
    attended = layout.gathered if layout.attention == "heads" else layout.everything
    angles = rotation(shard(positions, attended), config.rotary, config.head_dim) if config.rotary else None
    for number, layer in enumerate(params["layers"]):
        if layout.gathered:
            # Without it the compiler gathers the weights of layers to come as soon as there is a link free, and the
            # program no longer fits.
            x, layer = lax.optimization_barrier((x, layer))
        with jax.named_scope(f"{LAYER_SCOPE}{number}"):
            x = _layer(x, layer, model, angles, lambda q, k, v, number=number: attend(number, q, k, v))
    return x


def final_norm(params: Params, model: Partition, x: Float[Array, "residual_tokens embed"]) -> Array:
    """The hidden states that logits are made of."""
    return _norm(x, params, "final_norm", model)


def _layer(
    x: Array, layer: Params, model: Partition, angles: Rotation | None, attend: Callable[[Array, Array, Array], Array]
) -> Array:
    config, layout = model.config, model.layout
    normed = _norm(x, layer, "attention_norm", model)
    entered = all_gather(normed, layout.entry)  # [tokens.G, embed.e]

    used = model.in_use(layer, ATTENTION)
    q = queries(entered, used, layer, model)
    k, v = (keys_or_values(name, entered, used, layer, model) for name in ("key", "value"))
    if angles is not None:
        q, k = rotate(q, angles), rotate(k, angles)
    mixed = back(attend(q, k, v), model)  # [tokens.G, heads.F, head_dim]
    attention = linear(mixed, used["attention_out"], inputs=2)  # [tokens.G, embed.e] (partialsum-F)

    if config.parallel_block:
        partial = attention + feedforward(entered, model.in_use(layer, MATRICES), layer, model)
        biases: list[Array] = [layer[name] for name in ("attention_out_bias", "down_bias") if name in layer]
        return x + model.leave(partial, reduce(jnp.add, biases) if biases else None)

    x = x + _post_norm(model.leave(attention, layer.get("attention_out_bias")), layer, "post_attention_norm", model)
    normed = _norm(x, layer, "ffn_norm", model)
    if config.experts:
        out = experts(layer, normed, config, layout, fused_gathers=model.fused_gathers)
    else:
        entered = all_gather(normed, layout.entry)
        partial = feedforward(entered, model.in_use(layer, MATRICES), layer, model)
        out = model.leave(partial, layer.get("down_bias"))
    return x + _post_norm(out, layer, "post_ffn_norm", model)


def _norm(x: Array, params: Params, name: str, model: Partition) -> Array:
    scale, bias = model.vector(params[name]), model.vector(params.get(f"{name}_bias"))
    assert scale is not None
    return norm(x, scale, bias, model.config, model.layout.used_embed)


def _post_norm(x: Array, layer: Params, name: str, model: Partition) -> Array:
    return _norm(x, layer, name, model) if model.config.post_norms else x


def _embed(params: Params, model: Partition, tokens: Int[Array, " tokens"], positions: Int[Array, " tokens"]) -> Array:
    """The residual stream's first value. The table rests as [vocab.F, embed.E]: each chip looks up what it has."""
    config, layout = model.config, model.layout
    dtype = params["final_norm"].dtype

    table = model.table(params["embedding"])

    def look_up(tokens: Array) -> Array:
        rows = table.shape[0]
        at = tokens - index(layout.rest_ffn) * rows
        found = take(table, jnp.clip(at, 0, rows - 1), dtype)
        return jnp.where(((at >= 0) & (at < rows))[:, None], found, 0)  # [tokens, embed.E] (partialsum-F)

    def summed(tokens: Array) -> Array:
        if layout.used_embed == layout.rest_embed:
            return reduce_scatter(look_up(tokens), layout.tokens)
        # Tokens are to be split over x as well, whose chips hold different parts of embed: sum over the others first.
        others: Axes = tuple(axis for axis in layout.everything if axis not in layout.rest_embed)
        by_shard = tokens.reshape(layout.mesh.size(layout.rest_embed), layout.mesh.size(others), -1)
        x = reduce_scatter(look_up(jnp.swapaxes(by_shard, 0, 1).reshape(-1)), others)  # [tokens.yz, embed.x], x by x
        for axis in layout.rest_embed:
            x = all_to_all(x, axis, split=0, concat=1)
        return x  # [tokens.xyz, embed]

    if not layout.rest_ffn and not layout.rest_embed:
        x = take(table, tokens, dtype)
    else:  # some of every chip's tokens at a time, as each chip looks up all of them
        chips = layout.mesh.size(layout.tokens)
        pieces = math.gcd(tokens.shape[0] // chips, -(-tokens.shape[0] // _LOOKED_UP_TOKENS))
        by_piece = jnp.swapaxes(tokens.reshape(chips, pieces, -1), 0, 1).reshape(pieces, -1)
        x = lax.map(summed, by_piece) if pieces > 1 else summed(tokens)
        x = x.reshape(-1, x.shape[-1])
    if config.embedding_scale != 1:
        x = x * jnp.asarray(config.embedding_scale, dtype)
    if config.learned_positions:
        here = take(params["position_embedding"], shard(positions, layout.tokens), dtype)
        x = x + shard(here, layout.used_embed, dim=1)
    return x


def logits(
    params: Params, model: Partition, hidden: Float[Array, "residual_tokens embed"]
) -> Float[Array, "tokens vocab"]:
    """Unnormalised log-probabilities of the next token, float32, [tokens.rest_embed, vocab.rest_ffn].

    Tokens the table was padded with have none at all (minus infinity).
    """
    config, layout = model.config, model.layout
    if layout.used_embed == layout.rest_embed:
        entered = all_gather(hidden, tuple(axis for axis in layout.tokens if axis not in layout.rest_embed))
    else:  # [tokens.xyz, embed] -> [tokens.x, embed] -> [tokens, embed.x]
        others: Axes = tuple(axis for axis in layout.tokens if axis not in layout.rest_embed)
        entered = all_gather(hidden, others)
        for axis in layout.rest_embed:
            entered = all_to_all(entered, axis, split=1, concat=0)
    table = model.table(params.get("head", params["embedding"]))
    out = linear(entered, table, out_dtype=jnp.dtype(jnp.float32))
    out = reduce_scatter(out, layout.rest_embed)  # [tokens.E, vocab.F]
    if config.logits_softcap is not None:
        out = config.logits_softcap * jnp.tanh(out / config.logits_softcap)
    if model.held.vocab > config.vocab:
        ids = index(layout.rest_ffn) * out.shape[1] + jnp.arange(out.shape[1])
        out = jnp.where((ids < config.vocab)[None], out, -jnp.inf)
    return out
