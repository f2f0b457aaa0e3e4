"""The gated feed-forward (SwiGLU, Shazeer 2020): down(silu(gate x) * up x)."""

from __future__ import annotations

import jax
from jaxtyping import Array, Float

from engine.model.linear import linear
from engine.model.params import Params


def feedforward(layer: Params, x: Float[Array, "tokens embed"]) -> Float[Array, "tokens embed"]:
    gate = linear(x, layer["gate"], layer.get("gate_bias"))
    up = linear(x, layer["up"], layer.get("up_bias"))
    return linear(jax.nn.silu(gate) * up, layer["down"], layer.get("down_bias"))
