"""A model on a mesh: weights at rest become weights in use, activations enter a product and leave it.

Notation is the paper's: [tokens.T, embed.E] is split over the mesh axes T and E; (partialsum-e) is still to be summed
over e. On one chip all axes are empty and everything here is a plain product.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from engine.collectives import all_gather, all_reduce, reduce_scatter, shard
from engine.layout import Axes, DimAxes, HeldSizes, Layout
from engine.model.config import ModelConfig
from engine.model.linear import linear
from engine.model.params import Params, declare
from engine.model.quantized import LEVELS, Quantized

Weight = Array | Quantized


@dataclass(frozen=True)
class Partition:
    """What a program of one phase computes, and how it is laid out over the chips."""

    config: ModelConfig
    held: HeldSizes
    layout: Layout = Layout()
    micro_tokens: int = 16384
    """A feed-forward takes about this many of a chip's tokens at a time, which bounds its temporaries."""
    attention_kernel: Literal["blocks", "splash"] = "blocks"
    """Of prefill: engine.model.attention everywhere, or on TPUs, for lengths that it takes, engine.model.splash."""
    looped_tokens: range = range(0)
    """Feed-forwards of so many of a chip's tokens are faster as rings (engine/model/looped.py)."""
    fused_gathers: bool = False
    """Gathers of weights take their operand's memory (`gather_weight`)."""

    def loops(self, tokens: int) -> bool:
        """Whether a feed-forward of so many of a chip's tokens goes round in rings (engine/model/looped.py)."""
        split = self.layout.mesh.size((*self.layout.used_ffn, *self.layout.used_embed))
        return bool(self.layout.used_embed) and tokens in self.looped_tokens and self.config.ffn % split == 0

    @classmethod
    def single(cls, config: ModelConfig) -> Partition:
        """On one chip."""
        return cls(config, HeldSizes(config.heads, config.kv_heads, config.vocab))

    @property
    def cache_kv_heads(self) -> int:
        """Key and value heads of which a chip holds positions."""
        layout, held = self.layout, self.held
        if layout.attention != "heads":
            return held.kv_heads
        heads = held.heads // layout.mesh.size(layout.attention_heads)
        return max(1, heads * held.kv_heads // held.heads)

    def of_stage(self, params: Params) -> Params:
        """With the layers of this chip's stage alone: their axis of stages, of which a chip has one, is gone.

        To be called outside any loop, into which the barrier keeps the compiler from moving it: weights that are to be
        laid out anew would be so in every round.
        """
        if not self.layout.over_slices:
            return params
        layers = jax.tree.map(lambda x: lax.squeeze(x, (0,)), params["layers"])
        return params | {"layers": lax.optimization_barrier(layers)}

    def split_in_use(self, name: str) -> DimAxes:
        """How a layer's matrix is split when a product takes it."""
        return tuple(
            tuple(axis for axis in over if axis not in self.layout.gathered) for over in self._split_at_rest(name)
        )

    def in_use(self, layer: Params, names: tuple[str, ...]) -> Params:
        """These matrices of a layer, gathered over `layout.gathered`: an int8 weight as int8; its scales are here."""
        return {name: self._gather(name, layer[name]) for name in names if name in layer}

    def _gather(self, name: str, weight: Weight) -> Weight:
        def gather(x: Array) -> Array:
            return gather_weight(x, self._split_at_rest(name), self.layout.gathered, self.fused_gathers)

        if not isinstance(weight, Quantized):
            return gather(weight)
        values = gather(weight.values)
        return Quantized(values, beside(values, weight.scale, self.split_in_use(name)))

    def _split_at_rest(self, name: str) -> DimAxes:
        axes = declare(self.config)["layers"][0][name].axes
        return self.layout.at_rest(axes, self.held.kv_heads, self.config.expert_count)

    def table(self, weight: Weight) -> Weight:
        """The embedding table or the output head, [vocab, embed], where it rests; of its scales the part beside it."""
        if isinstance(weight, Quantized):
            return Quantized(weight.values, beside(weight.values, weight.scale, (self.layout.rest_ffn,)))
        return weight

    def enter(self, x: Array, weight: Weight, bias: Array | None = None, scatter_dim: int = 0) -> Array:
        """[tokens.G, embed.e] -> [tokens.(G,e), outputs]: a product into a block, summed over the axes of embed.

        The sum is scattered over the tokens, or over another dimension of the result. `bias` is that of the result's
        shard.
        """
        if not self.layout.used_embed:
            return linear(x, weight, bias)
        y = reduce_scatter(linear(x, weight), self.layout.used_embed, scatter_dim)
        return y if bias is None else _plus(y, bias)

    def summed(self, x: Array, weight: Weight, bias: Array | None = None) -> Array:
        """[tokens.G, embed.e] -> [tokens.G, outputs]: as `enter`, with the whole sum on every chip.

        For few numbers: the parts are summed in float32, which spares a TPU two steps of rounding.
        """
        y = all_reduce(linear(x, weight, out_dtype=jnp.dtype(jnp.float32)), self.layout.used_embed).astype(x.dtype)
        return y if bias is None else _plus(y, bias)

    def leave(self, partial: Array, bias: Array | None = None) -> Array:
        """[tokens.G, embed.e] (partialsum-F) -> the residual stream's [tokens.T, embed.e]."""
        y = reduce_scatter(partial, self.layout.entry)
        return y if bias is None else _plus(y, shard(bias, self.layout.used_embed))

    def vector(self, values: Array | None) -> Array | None:
        """The part of a norm's scale or bias that stands beside this chip's part of the residual stream."""
        if values is None or values.shape[0] != self.config.embed:  # there is none, or it is cut already
            return values
        return shard(values, self.layout.used_embed)

    def at_hand(self, params: Params) -> Params:
        """With norms and scales cut to this chip's parts, which are then not cut again: to be called outside of a loop.

        In a loop each cut would be an operation in every round, a microsecond of a TPU. Biases are left, and the
        scales of experts: their part depends on how many tokens there are.
        """

        def of(some: Params) -> Params:
            return {name: self._at_hand(name, value) for name, value in some.items() if name != "layers"}

        return of(params) | {"layers": [of(layer) for layer in params["layers"]]}

    def _at_hand(self, name: str, value: Weight) -> Weight:
        if isinstance(value, Quantized):
            if self.config.experts and name in ("gate", "up", "down"):
                return value
            is_table = name in ("embedding", "head")
            split = (self.layout.rest_ffn,) if is_table else self.split_in_use(name)[: value.scale.ndim]
            return Quantized(value.values, lax.optimization_barrier(sharded(value.scale, split)))
        if name.endswith(("_norm", "_norm_bias")):
            return lax.optimization_barrier(shard(value, self.layout.used_embed))
        return value


def gather_weight(x: Array, split: DimAxes, over: Axes, fused: bool = False) -> Array:
    """A matrix split so, gathered over these of its axes.

    The last gather is the largest, so that is the one over most axes: it uses the rings of all of them.

    `fused`: where gathers are fusions, they take their operand's memory for themselves. Of an argument, which has to
    stay, the compiler would give them a copy, and make the copies of all layers before the first of them begins. So
    they are given what is computed when its turn comes, by an operation that changes no number of a matrix.
    """
    if fused and any(axis in over for axes in split for axis in axes):
        x = jnp.maximum(x, -LEVELS if x.dtype == jnp.int8 else jnp.finfo(x.dtype).min)
    for dim, axes in sorted(enumerate(split), key=lambda one: len([axis for axis in one[1] if axis in over])):
        x = all_gather(x, tuple(axis for axis in axes if axis in over), dim)
    return x


def beside(values: Array, scale: Array, split: DimAxes) -> Array:
    """A matrix's scales for the outputs that `values` has of it, which are split so; they may be cut already."""
    for dim, over in enumerate(split[: scale.ndim]):
        if scale.shape[dim] != values.shape[dim]:
            scale = shard(scale, over, dim)
    return scale


def sharded(bias: Array | None, split: DimAxes) -> Array | None:
    """The part of a bias that stands beside a result split so."""
    if bias is not None:
        for dim, axes in enumerate(split):
            bias = shard(bias, axes, dim)
    return bias


def _plus(x: Array, bias: Array) -> Array:
    """In float32, as the products do it."""
    return (x.astype(jnp.float32) + bias[None].astype(jnp.float32)).astype(x.dtype)
