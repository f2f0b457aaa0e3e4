"""The one matrix product of activations with weights. Everything that multiplies by a parameter comes through here."""

from __future__ import annotations

import math

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float


def linear(
    x: Float[Array, "tokens inputs"],
    weight: Float[Array, "..."],
    bias: Float[Array, "..."] | None = None,
    out_dtype: jnp.dtype | None = None,
) -> Float[Array, "tokens ..."]:
    """x @ weight.T with float32 accumulation; `weight` is [*outputs, inputs] and its outputs keep their axes.

    Both operands are contracted over their minor axis: on CPU that makes a row's result independent of how many rows
    there are (from 8 up), which is what makes a record's answer independent of its batch.
    """
    outputs = weight.shape[:-1]
    flat = weight.reshape(math.prod(outputs), weight.shape[-1])
    product = lax.dot_general(x, flat, (((1,), (1,)), ((), ())), preferred_element_type=jnp.float32)
    if bias is not None:
        product = product + bias.reshape(1, -1).astype(jnp.float32)
    return product.astype(out_dtype or x.dtype).reshape(x.shape[0], *outputs)
