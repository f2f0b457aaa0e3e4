"""The non-linearities of feed-forwards, in float32 and rounded once to the dtype of their input, as in torch."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

Activation = Callable[[Float[Array, "..."]], Float[Array, "..."]]

_IN_FLOAT32: dict[str, Activation] = {
    "silu": jax.nn.silu,  # x * sigmoid(x)
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),  # x * P(a normal variable < x) (Hendrycks and Gimpel 2016)
    "gelu_tanh": lambda x: jax.nn.gelu(x, approximate=True),  # the same by tanh, as GPT-2 and Gemma have it
}


def activation(name: str) -> Activation:
    """The activation of that name."""
    compute = _IN_FLOAT32[name]
    return lambda x: compute(x.astype(jnp.float32)).astype(x.dtype)
