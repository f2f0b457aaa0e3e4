"""Into attention and back: queries, keys and values in the form in which a chip attends, by the layout's sharding.

    heads     [tokens.gathered, heads.(F,e), head_dim]   every sequence, some of the heads
    batch     [tokens.everything, heads, head_dim]       every head, some of the sequences (all-to-all and back)
    sequence  as batch; then each chip attends to its own part of the positions, and the parts are merged

Products come out as [tokens.G, heads.F, head_dim] (partialsum-e), where F and e are the axes of weights in use.
"""

from __future__ import annotations

from jax import lax
from jaxtyping import Array

from engine import collectives
from engine.axes import FEW_ROWS
from engine.collectives import Axes, all_gather, all_to_all, shard
from engine.model.params import Params
from engine.model.partition import Partition, sharded

_TOKENS, _HEADS, _HEAD_DIM = range(3)


def queries(x: Array, used: Params, layer: Params, model: Partition) -> Array:
    layout = model.layout
    if layout.attention == "heads":
        bias = sharded(layer.get("query_bias"), (layout.attention_heads, ()))
        return model.enter(x, used["query"], bias, scatter_dim=_HEADS)
    q = model.enter(x, used["query"], sharded(layer.get("query_bias"), (layout.used_ffn, ())))
    for axis in reversed(layout.used_ffn):
        q = all_to_all(q, axis, split=_TOKENS, concat=_HEADS)
    return q


def keys_or_values(name: str, x: Array, used: Params, layer: Params, model: Partition) -> Array:
    """`name` is "key" or "value". Under `heads`, a chip gets all heads of its share in `kv_heads_held`."""
    layout, bias = model.layout, layer.get(f"{name}_bias")
    by_head, by_dim, _ = model.split_in_use(name)
    if layout.attention == "heads" and layout.kv_heads_whole(model.held.kv_heads):
        bias = sharded(bias, (layout.attention_heads, ()))
        return model.enter(x, used[name], bias, scatter_dim=_HEADS)
    bias = sharded(bias, (by_head, by_dim))
    if layout.attention == "heads":
        y = model.enter(x, used[name], bias)
        return all_gather(all_gather(y, by_dim, _HEAD_DIM), layout.used_embed, _TOKENS)

    def sent(x: Array) -> Array:
        y = model.enter(x, used[name], bias)
        for axis in reversed(layout.used_ffn):
            y = all_to_all(y, axis, split=_TOKENS, concat=_HEADS if axis in by_head else _HEAD_DIM)
        return y

    def everywhere(x: Array) -> Array:
        y = model.summed(x, used[name], bias)
        tokens, heads, head_dim = y.shape
        y = y.reshape(tokens * heads, head_dim)  # so laid out, a token's rows can be taken out as they are
        own = shard(lax.all_gather(y, layout.used_ffn), layout.everything, dim=1)
        own = own.reshape(layout.mesh.size(by_head), layout.mesh.size(by_dim), -1, heads, head_dim)
        return own.transpose(2, 0, 3, 1, 4).reshape(own.shape[2], len(own) * heads, own.shape[1] * head_dim)

    few = bool(layout.used_embed) and x.shape[0] < FEW_ROWS * layout.mesh.size(layout.used_embed)
    if not few or layout.gathered or not layout.used_ffn:
        return sent(x)
    # The sums of so few rows a TPU sends everywhere in any case; a chip takes its own where it goes on with them.
    return lax.platform_dependent(x, cpu=sent, default=everywhere)


def own_kv_heads(x: Array, model: Partition, dim: int) -> Array:
    """Of the key or value heads that `keys_or_values` gave, those that this chip's query heads attend with."""
    layout, held = model.layout, model.held
    copies: Axes = tuple(axis for axis in layout.attention_heads if axis not in layout.kv_heads_held(held.kv_heads))
    if not copies:
        return x
    heads = held.heads // layout.mesh.size(layout.attention_heads)
    group = held.heads // held.kv_heads
    start = collectives.index(copies) * heads // group
    return lax.dynamic_slice_in_dim(x, start, max(1, heads // group), axis=dim)


def back(mixed: Array, model: Partition) -> Array:
    """The reverse of `queries`: [tokens.G, heads.F, head_dim], as the output projection takes it."""
    layout = model.layout
    if layout.attention == "heads":
        return all_gather(mixed, layout.used_embed, _HEADS)
    for axis in layout.used_ffn:
        mixed = all_to_all(mixed, axis, split=_HEADS, concat=_TOKENS)
    return all_gather(mixed, layout.used_embed, _TOKENS)
