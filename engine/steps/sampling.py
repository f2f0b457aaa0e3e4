"""Choosing the next token of every slot, each by its own rule and its own random key.

Nothing here sorts the vocabulary. A filter (top-k, top-p, min-p) keeps the tokens at or above a threshold, and the
threshold is found by bisection over the bits of a float32: 32 counting passes give it exactly. Counting is cheap on any
backend, is the same for a row whatever rows stand beside it, and works on a vocabulary that is spread over chips.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int, UInt32

from engine.model.reductions import row_sum

Logits = Float[Array, "slots vocab"]
Leaf = Any
"""An array of a state: on the host, on the device or, while a program is traced, neither."""

_RUN = 128  # tokens summed at a time when drawing


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class SamplingRules:
    """`engine.runtime.request.Sampling` of every slot, as arrays."""

    temperature: Leaf  # f32[slots]
    top_k: Leaf  # i32[slots]
    top_p: Leaf  # f32[slots]
    min_p: Leaf  # f32[slots]
    key: Leaf  # u32[slots, 5]: what the random key is folded from: seed (high, low), record (high, low), sample index


def choose(
    logits: Logits, rules: SamplingRules, positions: Int[Array, " slots"], allowed: Bool[Array, "slots vocab"]
) -> Int[Array, " slots"]:
    """The next token of every slot; `positions` is where it will stand in its sequence."""
    logits = jnp.where(allowed, logits, -jnp.inf)
    greedy = jnp.argmax(logits, axis=-1).astype(jnp.int32)
    sampled = rules.temperature > 0

    def sample() -> Int[Array, " slots"]:
        warm = logits / jnp.where(sampled, rules.temperature, 1.0)[:, None]
        weights = _filter(jnp.exp(warm - warm.max(-1, keepdims=True)), rules)
        return jnp.where(sampled, _draw(weights, _uniform(rules.key, positions)), greedy)

    return lax.cond(jnp.any(sampled), sample, lambda: greedy)


def _filter(weights: Logits, rules: SamplingRules) -> Logits:
    """Zeroes what top-k, top-p and min-p drop. `weights` are probabilities times a constant, the largest being 1."""

    def top_k(weights: Logits) -> Logits:
        wanted = jnp.where(rules.top_k > 0, rules.top_k, weights.shape[-1])
        threshold = _largest(weights, lambda kept: jnp.sum(kept, axis=-1, dtype=jnp.int32) >= wanted)
        return jnp.where(weights >= threshold[:, None], weights, 0.0)

    def top_p(weights: Logits) -> Logits:
        wanted = rules.top_p * row_sum(weights)
        threshold = _largest(weights, lambda kept: row_sum(jnp.where(kept, weights, 0.0)) >= wanted)
        keep = (weights >= threshold[:, None]) | (rules.top_p >= 1)[:, None]
        return jnp.where(keep, weights, 0.0)

    weights = lax.cond(jnp.any(rules.top_k > 0), top_k, lambda weights: weights, weights)
    weights = lax.cond(jnp.any(rules.top_p < 1), top_p, lambda weights: weights, weights)
    return jnp.where(weights >= rules.min_p[:, None], weights, 0.0)


def _largest(weights: Logits, enough) -> Float[Array, " slots"]:
    """The largest threshold t >= 0 for which enough(weights >= t) holds, per slot.

    Non-negative float32 order as their bits do, so this is a bisection over 31 bits, set from the highest down."""

    def as_float(bits: UInt32[Array, " slots"]) -> Float[Array, " slots"]:
        return lax.bitcast_convert_type(bits, jnp.float32)

    def set_bit(index: Int[Array, ""], bits: UInt32[Array, " slots"]) -> UInt32[Array, " slots"]:
        tried = bits | (jnp.uint32(1) << (30 - index).astype(jnp.uint32))
        return jnp.where(enough(weights >= as_float(tried)[:, None]), tried, bits)

    return as_float(lax.fori_loop(0, 31, set_bit, jnp.zeros(weights.shape[0], jnp.uint32)))


def _uniform(key: UInt32[Array, "slots words"], positions: Int[Array, " slots"]) -> Float[Array, " slots"]:
    """One number in [0, 1) a slot, from fold_in(seed, record, sample index, position) alone."""

    def one(words: UInt32[Array, " words"], position: Int[Array, ""]) -> Float[Array, ""]:
        folded = jax.random.wrap_key_data(words[:2], impl="threefry2x32")
        for word in (words[2], words[3], words[4], position.astype(jnp.uint32)):
            folded = jax.random.fold_in(folded, word)
        return jax.random.uniform(folded, (), jnp.float32)

    return jax.vmap(one)(key, positions)


def _draw(weights: Logits, uniform: Float[Array, " slots"]) -> Int[Array, " slots"]:
    """The token where the running sum of weights passes uniform * total.

    Sums run over 128 tokens at a time, so the rounding of a vocabulary-long running sum does not build up."""
    slots, vocab = weights.shape
    runs = jnp.pad(weights, ((0, 0), (0, -vocab % _RUN))).reshape(slots, -1, _RUN)
    up_to = jnp.cumsum(row_sum(runs), axis=-1)
    target = uniform * up_to[:, -1]
    run = _first(up_to > target[:, None], runs.max(-1) > 0)
    before = jnp.where(run > 0, jnp.take_along_axis(up_to, jnp.maximum(run - 1, 0)[:, None], axis=-1)[:, 0], 0.0)
    inside = jnp.take_along_axis(runs, run[:, None, None], axis=1)[:, 0]
    token = _first((before[:, None] + jnp.cumsum(inside, axis=-1) > target[:, None]) & (inside > 0), inside > 0)
    return run * _RUN + token


def _first(passed: Bool[Array, "slots choices"], possible: Bool[Array, "slots choices"]) -> Int[Array, " slots"]:
    """The first index that passed, or, where rounding let none pass, the last possible one."""
    last = possible.shape[-1] - 1 - jnp.argmax(possible[:, ::-1], axis=-1)
    return jnp.where(passed.any(-1), jnp.argmax(passed, axis=-1), last).astype(jnp.int32)
