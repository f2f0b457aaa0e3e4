"""Normalisation of the residual stream, in float32 whatever the activations are.

The embed dimension may be split over mesh axes: then every chip sums its part of a row, the sums are added up over the
chips, and the scale and the bias are the chip's parts of them.
"""

from __future__ import annotations

from functools import reduce

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from engine import collectives
from engine.axes import FEW_ROWS, RUN
from engine.collectives import Axes
from engine.model.config import ModelConfig
from engine.model.reductions import row_sum

Rows = Float[Array, "tokens embed"]
Vector = Float[Array, " embed"]


def norm(x: Rows, scale: Vector, bias: Vector | None, config: ModelConfig, embed_axes: Axes = ()) -> Rows:
    """The model's normalisation. `x`, `scale` and `bias` are this chip's parts where embed is over `embed_axes`."""
    compute = {"rms": rms_norm, "layer": layer_norm}[config.norm]
    return compute(
        x, scale, config.norm_epsilon, bias, scale_from_one=config.norm_scale_from_one, embed_axes=embed_axes
    )


def rms_norm(
    x: Rows,
    scale: Vector,
    epsilon: float,
    bias: Vector | None = None,
    *,
    scale_from_one: bool = False,
    embed_axes: Axes = (),
) -> Rows:
    """x / rms(x) * scale (Zhang and Sennrich 2019).

    Llama's reference casts back before it multiplies; Gemma's, whose scale is counted from one, afterwards.
    """
    wide = x.astype(jnp.float32)
    unit = wide * lax.rsqrt(_mean(wide * wide, embed_axes) + epsilon)
    if scale_from_one:
        return _scaled(unit, 1.0 + scale.astype(jnp.float32), bias).astype(x.dtype)
    return _scaled(unit.astype(x.dtype), scale, bias)


def layer_norm(
    x: Rows,
    scale: Vector,
    epsilon: float,
    bias: Vector | None = None,
    *,
    scale_from_one: bool = False,
    embed_axes: Axes = (),
) -> Rows:
    """(x - mean(x)) / std(x) * scale + bias (Ba et al. 2016), cast back at the end.

    The mean is subtracted before anything is squared: a row far from zero loses no digits.
    """
    wide = x.astype(jnp.float32)
    centred = wide - _mean(wide, embed_axes)
    unit = centred * lax.rsqrt(_mean(centred * centred, embed_axes) + epsilon)
    scale = scale.astype(jnp.float32)
    return _scaled(unit, 1.0 + scale if scale_from_one else scale, bias).astype(x.dtype)


def _mean(x: Rows, embed_axes: Axes) -> Float[Array, "tokens 1"]:
    """Of whole rows, of which this chip has the part `x`.

    Few rows come in runs (engine/axes.py). On a TPU the sums of the runs go over the chips as they are and are
    added up with what follows: alone that would be one operation more, a microsecond.
    """
    rows, columns = x.shape

    def by_row(x: Rows) -> Array:
        return collectives.all_reduce(row_sum(x), embed_axes)

    def by_run(x: Rows) -> Array:
        sums = collectives.all_reduce(x.reshape(rows, -1, RUN).sum(-1), embed_axes)
        return reduce(jnp.add, (sums[:, run] for run in range(columns // RUN)))

    if not embed_axes:
        return by_row(x)[:, None] / columns
    few = rows < FEW_ROWS and columns % RUN == 0
    total = lax.platform_dependent(x, cpu=by_row, default=by_run) if few else by_row(x)
    return total[:, None] / (columns * lax.axis_size(embed_axes))


def _scaled(unit: Rows, scale: Vector, bias: Vector | None) -> Rows:
    scaled = unit * scale[None, :]
    return scaled if bias is None else scaled + bias.astype(scaled.dtype)[None, :]
