"""Prefill: keys and values of whole prompts in one pass. No logits: the last prompt token is left to decode.

A prompt of n tokens prefills its first n - 1; its last token is the first input of decode, which samples what follows.
So sampling lives in one program, and prefill ends at the last layer's keys and values.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from engine.collectives import all_gather, index
from engine.model.attention import causal_attention
from engine.model.attention_projections import own_kv_heads
from engine.model.decoder import hidden_states
from engine.model.params import Params
from engine.model.partition import Partition
from engine.model.splash import fits, splash_attention

KeysOrValues = list[Float[Array, "own_rows own_seq kv_heads head_dim"]]


def prefill(
    params: Params, model: Partition, tokens: Int[Array, "rows seq"]
) -> tuple[KeysOrValues, KeysOrValues, Float[Array, "residual_tokens embed"]]:
    """Keys and values of every layer, and the final hidden states, of rows padded on the right.

    What stands at a row's padding is meaningless and, by causality, without influence on what stands before it. Every
    chip is given all tokens; it returns the keys and values of its `attention_rows`, `attention_sequence` and
    `kv_heads_held`, and its part of the residual stream, whose tokens are in the order of `flatten`.
    """
    layout, config = model.layout, model.config
    rows, seq = tokens.shape
    rows //= layout.mesh.size(layout.attention_rows)
    chunk = seq // layout.mesh.size(layout.attention_sequence)
    keys: KeysOrValues = []
    values: KeysOrValues = []

    def attend(layer: int, q: Array, k: Array, v: Array) -> Array:
        q, k, v = (x.reshape(rows, chunk, *x.shape[1:]) for x in (q, k, v))
        keys.append(k)
        values.append(v)
        k, v = (own_kv_heads(all_gather(x, layout.attention_sequence, dim=1), model, dim=2) for x in (k, v))
        mixed = _attention(
            model,
            q,
            k,
            v,
            scale=config.attention_scale,
            softcap=config.attention_softcap,
            window=config.window(layer),
            query_start=index(layout.attention_sequence) * chunk,
        )
        return mixed.reshape(rows * chunk, *mixed.shape[2:])

    positions = jnp.broadcast_to(jnp.arange(seq)[None], tokens.shape)
    hidden = hidden_states(params, model, flatten(tokens, model), flatten(positions, model), attend)
    return keys, values, hidden


def _attention(model: Partition, q: Array, k: Array, v: Array, **rules: Any) -> Array:
    blocks = partial(causal_attention, **rules)
    if model.attention_kernel == "blocks" or not fits(q.shape[1], k.shape[1]):
        return blocks(q, k, v)
    return lax.platform_dependent(q, k, v, tpu=partial(splash_attention, **rules), default=blocks)


def flatten(rows: Int[Array, "rows seq"], model: Partition) -> Int[Array, " tokens"]:
    """Tokens in the order in which they are split over chips: row by row, or first by part of the sequence."""
    parts = model.layout.mesh.size(model.layout.attention_sequence)
    return jnp.swapaxes(rows.reshape(rows.shape[0], parts, -1), 0, 1).reshape(-1)


def unflatten(tokens: Array, model: Partition, rows: int) -> Array:
    """The reverse of `flatten`: [rows, seq]."""
    parts = model.layout.mesh.size(model.layout.attention_sequence)
    return jnp.swapaxes(tokens.reshape(parts, rows, -1), 0, 1).reshape(rows, -1)
