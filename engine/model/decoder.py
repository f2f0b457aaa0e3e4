"""The decoder, top to bottom. What attends to what is the caller's: prefill, decode and score each hand in `attend`.

Tokens are one flat axis here; rows and slots exist only inside `attend`.
"""

from __future__ import annotations

from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from engine.model.config import ModelConfig
from engine.model.feedforward import feedforward
from engine.model.linear import linear
from engine.model.norms import rms_norm
from engine.model.params import Params
from engine.model.positions import rotate, rotation

Attend = Callable[[int, Array, Array, Array], Array]
"""(layer, q [tokens, heads, head_dim], k and v [tokens, kv_heads, head_dim]) -> [tokens, heads, head_dim]."""


def hidden_states(
    params: Params,
    config: ModelConfig,
    tokens: Int[Array, " tokens"],
    positions: Int[Array, " tokens"],
    attend: Attend,
) -> Float[Array, "tokens embed"]:
    """The residual stream after the final norm."""
    x = params["embedding"][tokens]
    angles = rotation(positions, config.rotary, config.head_dim)
    for index, layer in enumerate(params["layers"]):
        normed = rms_norm(x, layer["attention_norm"], config.norm_epsilon)
        q = rotate(linear(normed, layer["query"], layer.get("query_bias")), angles)
        k = rotate(linear(normed, layer["key"], layer.get("key_bias")), angles)
        v = linear(normed, layer["value"], layer.get("value_bias"))
        mixed = attend(index, q, k, v).reshape(x.shape[0], -1)
        out = layer["attention_out"].reshape(config.embed, -1)
        x = x + linear(mixed, out, layer.get("attention_out_bias"))

        normed = rms_norm(x, layer["ffn_norm"], config.norm_epsilon)
        x = x + feedforward(layer, normed)
    return rms_norm(x, params["final_norm"], config.norm_epsilon)


def logits(params: Params, hidden: Float[Array, "tokens embed"]) -> Float[Array, "tokens vocab"]:
    """Unnormalised log-probabilities of the next token, float32."""
    return linear(hidden, params.get("head", params["embedding"]), out_dtype=jnp.dtype(jnp.float32))
