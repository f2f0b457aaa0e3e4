"""A mixture of feed-forwards (Shazeer et al. 2017; Mixtral, Jiang et al. 2024) in place of the single one.

    out = sum over a token's experts of weight * down(activation(gate x) * up x)

No token is ever dropped: an expert takes as many as like it, so the result is that of one chip whatever the layout.
How tokens and experts are brought together is in engine/model/expert_strategy.py. In the notation of partition.py,
with N the expert axes and F the ffn axes of weights in use:

    everywhere   [tokens.G, embed.e]    every chip has the tokens of its experts already
    sent         [tokens.(G,N), embed.e] -> rows of this chip's experts -> back
    gathered     [tokens.(G,N), embed.e]    every chip has all experts
"""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Float

from engine.axes import Axis
from engine.collectives import all_gather, index, reduce_scatter, shard
from engine.layout import Axes, Layout
from engine.model.config import ModelConfig
from engine.model.exchange import fold, plan_exchange, send
from engine.model.expert_strategy import Strategy, entered_over, expert_axes, strategy
from engine.model.mixture import mixture
from engine.model.params import Params
from engine.model.partition import gather_weight
from engine.model.quantized import Quantized, parts
from engine.model.routing import combine, route, sort_by_expert


def experts(
    layer: Params,
    x: Float[Array, "tokens embed"],
    config: ModelConfig,
    layout: Layout,
    how: Strategy | None = None,
    fused_gathers: bool = False,
) -> Float[Array, "tokens embed"]:
    """The residual stream, normalised, [tokens.T, embed.e], to what is to be added to it, in the same form.

    `layer` has the weights at rest. `how` is for whoever knows better than `strategy`; `fused_gathers` as in
    `Partition`.
    """
    assert config.experts is not None
    count, per_token = config.experts.count, config.experts.per_token
    if how is None:
        tokens = x.shape[0] * layout.mesh.size(layout.tokens)
        weight_bytes = parts(layer["up"])[0].dtype.itemsize
        how = strategy(tokens, config, layout, x.dtype.itemsize, weight_bytes)
    over = () if how == "gathered" else expert_axes(count, layout)  # N
    here = count // layout.mesh.size(over)
    entry = entered_over(how, count, layout)
    used = _in_use(layer, over, count, layout, fused_gathers)

    entered = all_gather(x, entry)
    routes = route(entered, layer["router"], per_token, layout.used_embed)
    sent = how == "sent" and len(over) > 0
    tokens = entered.shape[0] * layout.mesh.size(over if sent else ())  # that may want an expert of this chip
    most_rows, expected = tokens * min(per_token, here), tokens * per_token / count
    if sent:
        pairs = sort_by_expert(routes.experts, 0, count)
        plan = plan_exchange(pairs.sizes, over)
        rows = send(fold(entered)[pairs.tokens], plan.there, plan.back, most_rows, over)
        in_place = jnp.arange(most_rows, dtype=jnp.int32)
        results = mixture(rows, in_place, plan.sizes, used, expected, config, layout)
        results = send(results, plan.back, plan.there, pairs.tokens.shape[0], over)
    else:
        pairs = sort_by_expert(routes.experts, index(over) * here, here)
        results = mixture(entered, pairs.tokens[:most_rows], pairs.sizes, used, expected, config, layout)
    return reduce_scatter(combine(results, pairs, routes.weights), entry)


def _in_use(layer: Params, over: Axes, count: int, layout: Layout, fused_gathers: bool) -> Params:
    """The matrices at rest, gathered wherever they are not split in use; int8 as int8. Scales are whole at rest."""
    split_at_rest = {*layout.gathered, *layout.experts_split(count)}
    gathered: Axes = tuple(axis for axis in layout.everything if axis in split_at_rest and axis not in over)

    def gather(weight: Array | Quantized, *dims: Axis) -> Array | Quantized:
        values, scale = parts(weight)
        split = layout.at_rest(dims, 1, count)
        values = gather_weight(values, split, gathered, fused_gathers)
        for dim, axes in enumerate(split):
            if scale is not None and dim < scale.ndim:
                scale = shard(scale, tuple(axis for axis in axes if axis not in gathered), dim)
        return values if scale is None else Quantized(values, scale)

    used = {name: gather(layer[name], "experts", "ffn", "embed") for name in ("gate", "up") if name in layer}
    return used | {"down": gather(layer["down"], "experts", "embed", "ffn")}
