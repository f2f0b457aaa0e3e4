"""Prefill: keys and values of whole prompts in one pass. No logits: the last prompt token is left to decode.

A prompt of n tokens prefills its first n - 1; its last token is the first input of decode, which samples what follows.
So sampling lives in one program, and prefill ends at the last layer's keys and values.
"""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from engine.model.attention import causal_attention
from engine.model.config import ModelConfig
from engine.model.decoder import hidden_states
from engine.model.params import Params

KeysOrValues = list[Float[Array, "rows seq kv_heads head_dim"]]


def prefill(
    params: Params, config: ModelConfig, tokens: Int[Array, "rows seq"]
) -> tuple[KeysOrValues, KeysOrValues, Float[Array, "rows seq embed"]]:
    """Keys and values of every layer, and the final hidden states, of rows padded on the right.

    What stands at a row's padding is meaningless and, by causality, without influence on what stands before it.
    """
    rows, seq = tokens.shape
    keys: KeysOrValues = []
    values: KeysOrValues = []

    def attend(layer: int, q: Array, k: Array, v: Array) -> Array:
        q, k, v = (x.reshape(rows, seq, *x.shape[1:]) for x in (q, k, v))
        keys.append(k)
        values.append(v)
        return causal_attention(q, k, v).reshape(rows * seq, *q.shape[2:])

    positions = jnp.tile(jnp.arange(seq), rows)
    hidden = hidden_states(params, config, tokens.reshape(-1), positions, attend)
    return keys, values, hidden.reshape(rows, seq, -1)
