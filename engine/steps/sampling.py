"""Choosing the next token of every slot, each by its own rule and its own random key.

Nothing here sorts the vocabulary. A filter (top-k, top-p, min-p) keeps the tokens at or above a threshold, and the
threshold is found by bisection over the bits of a float32: 32 counting passes give it exactly. Counting is cheap on any
backend, is the same for a row whatever rows stand beside it, and works on a vocabulary that is spread over chips.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int, Shaped, UInt32

from engine.model.reductions import row_sum

Runs = Float[Array, "runs run"]
"""A row over the vocabulary in runs of `_RUN` tokens, padded."""
Leaf = Any
"""An array of a state: on the host, on the device or, while a program is traced, neither."""

_RUN = 128  # tokens; so many are summed at a time when drawing
_BITS = 30  # of a float32 from 0 to 2


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class SamplingRules:
    """`engine.runtime.request.Sampling` of every slot, as arrays."""

    temperature: Leaf  # f32[slots]
    top_k: Leaf  # i32[slots]
    top_p: Leaf  # f32[slots]
    min_p: Leaf  # f32[slots]
    key: Leaf  # u32[slots, 5]: what the random key is folded from: seed (high, low), record (high, low), sample index


def in_runs(rows: Shaped[Array, "*slots vocab"], padding: float | int) -> Shaped[Array, "*slots runs run"]:
    """Rows as they are passed over many times: one long row would fill an eighth of a TPU's registers."""
    *slots, vocab = rows.shape
    padded = jnp.pad(rows, [(0, 0)] * len(slots) + [(0, -vocab % _RUN)], constant_values=padding)
    return padded.reshape(*slots, -1, _RUN)


def choose(
    logits: Float[Array, "slots runs run"],
    rules: SamplingRules,
    positions: Int[Array, " slots"],
    allowed: Bool[Array, "slots runs run"],
    loop_over_slots: bool,
) -> Int[Array, " slots"]:
    """The next token of every slot; `positions` is where it will stand in its sequence. Padding is minus infinity.

    `loop_over_slots` samples slot by slot, each passing only the filters it asks for over a row that stays in the
    processor's cache: the better program on CPU. Without it all slots are sampled together.
    """
    logits = jnp.where(allowed, logits, -jnp.inf)
    greedy = _likeliest(logits)

    def one(slot: tuple[Array, SamplingRules, Array, Array]) -> Array:
        row, rule, position, likeliest = slot
        return lax.cond(rule.temperature > 0, lambda: _sample(row, rule, position), lambda: likeliest)

    def sample() -> Array:
        slots = (logits, jax.tree.map(jnp.asarray, rules), positions, greedy)
        return lax.map(one, slots) if loop_over_slots else jax.vmap(one)(slots)

    return lax.cond(jnp.any(rules.temperature > 0), sample, lambda: greedy)


def _likeliest(logits: Float[Array, "slots runs run"]) -> Int[Array, " slots"]:
    """The first of the most likely tokens."""
    run = jnp.argmax(logits.max(-1), axis=-1)
    inside = jnp.take_along_axis(logits, run[:, None, None], axis=1)[:, 0]
    return (run * _RUN + jnp.argmax(inside, axis=-1)).astype(jnp.int32)


def _sample(logits: Runs, rule: SamplingRules, position: Int[Array, ""]) -> Int[Array, ""]:
    warm = logits / jnp.where(rule.temperature > 0, rule.temperature, 1.0)
    return _draw(_filter(jnp.exp(warm - warm.max()), rule), _uniform(rule.key, position))


def _filter(weights: Runs, rule: SamplingRules) -> Runs:
    """Zeroes what top-k, top-p and min-p drop. `weights` are probabilities times a constant, the largest being 1."""

    def top_k(weights: Runs) -> Runs:
        threshold = _largest(weights, lambda kept: jnp.sum(kept, dtype=jnp.int32) >= rule.top_k)
        return jnp.where(weights >= threshold, weights, 0.0)

    def top_p(weights: Runs) -> Runs:
        wanted = rule.top_p * _total(weights)
        threshold = _largest(weights, lambda kept: _total(jnp.where(kept, weights, 0.0)) >= wanted)
        return jnp.where(weights >= threshold, weights, 0.0)

    weights = lax.cond(rule.top_k > 0, top_k, lambda weights: weights, weights)
    weights = lax.cond(rule.top_p < 1, top_p, lambda weights: weights, weights)
    return jnp.where(weights >= rule.min_p, weights, 0.0)


def _total(weights: Runs) -> Float[Array, ""]:
    """The sum of a row, run on run and then along one run: two passes a compiler vectorises.

    Walked slot by slot, the shape is the vocabulary's alone, so the order of additions is too.
    """
    return weights.sum(0).sum()


def _largest(weights: Runs, enough: Callable[[Array], Array]) -> Float[Array, ""]:
    """The largest threshold 0 <= t < 2 for which enough(weights >= t) holds.

    Non-negative float32 order as their bits do, so this is a search over 30 bits, set from the highest down: one at a
    time on CPU, where comparisons are what costs, and three elsewhere, where passes are.
    """

    def as_float(bits: UInt32[Array, ""]) -> Float[Array, ""]:
        return lax.bitcast_convert_type(bits, jnp.float32)

    def search(weights: Runs, together: int) -> UInt32[Array, ""]:
        def set_bits(index: Int[Array, ""], bits: UInt32[Array, ""]) -> UInt32[Array, ""]:
            lowest = (_BITS - (index + 1) * together).astype(jnp.uint32)
            tried = [bits | (jnp.uint32(value) << lowest) for value in range(1, 1 << together)]
            for one in tried:  # who fails for one fails for all that are larger
                bits = jnp.where(enough(weights >= as_float(one)), one, bits)
            return bits

        return lax.fori_loop(0, _BITS // together, set_bits, jnp.uint32(0))

    return as_float(
        lax.platform_dependent(weights, cpu=partial(search, together=1), default=partial(search, together=3))
    )


def _uniform(key: UInt32[Array, " words"], position: Int[Array, ""]) -> Float[Array, ""]:
    """A number in [0, 1) from fold_in(seed, record, sample index, position) alone."""
    folded = jax.random.wrap_key_data(key[:2], impl="threefry2x32")
    for word in (key[2], key[3], key[4], position.astype(jnp.uint32)):
        folded = jax.random.fold_in(folded, word)
    return jax.random.uniform(folded, (), jnp.float32)


def _draw(runs: Runs, uniform: Float[Array, ""]) -> Int[Array, ""]:
    """The token where the running sum of weights passes uniform * total.

    Sums run over 128 tokens at a time, so the rounding of a vocabulary-long running sum does not build up."""
    up_to = jnp.cumsum(row_sum(runs))
    target = uniform * up_to[-1]
    run = _first(up_to > target, runs.max(-1) > 0)
    before = jnp.where(run > 0, up_to[jnp.maximum(run - 1, 0)], 0.0)
    inside = runs[run]
    token = _first((before + jnp.cumsum(inside) > target) & (inside > 0), inside > 0)
    return run * _RUN + token


def _first(passed: Bool[Array, " choices"], possible: Bool[Array, " choices"]) -> Int[Array, ""]:
    """The first index that passed, or, where rounding let none pass, the last possible one."""
    last = possible.shape[0] - 1 - jnp.argmax(possible[::-1])
    return jnp.where(passed.any(), jnp.argmax(passed), last).astype(jnp.int32)
