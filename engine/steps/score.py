"""Score: log-probabilities of tokens that are already there (teacher forcing), with bounded memory.

Logits are made, reduced and dropped for a few dozen positions a chip at a time: [positions, vocab] of a whole batch,
the usual way to run out of memory, never exists.

In a pipeline the last stage has the hidden states; what it makes of them goes to all.
"""

from __future__ import annotations

import math

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from engine.collectives import Axes, all_gather, all_reduce, from_last, index, largest, shard
from engine.model.decoder import logits
from engine.model.params import Params
from engine.model.partition import Partition
from engine.model.reductions import log_sum_exp
from engine.steps.prefill import flatten, prefill, unflatten

_POSITIONS_AT_A_TIME = 64


def score(
    params: Params, model: Partition, tokens: Int[Array, "rows seq"], micro_batches: int = 1
) -> tuple[Float[Array, "rows seq"], Bool[Array, "rows seq"]]:
    """At position t: log P(tokens[t + 1] | tokens[: t + 1]) and whether tokens[t + 1] was the most likely token.

    The last column has no next token and is meaningless, as is all padding on the right. Every chip has all results.
    """
    layout = model.layout
    hidden = prefill(params, model, tokens, micro_batches)[2]
    at_a_time = math.gcd(hidden.shape[0], _POSITIONS_AT_A_TIME)
    chips = layout.mesh.size(layout.tokens)

    def some(piece: tuple[Array, Array]) -> tuple[Array, Array]:
        hidden, target = piece
        out = logits(params, model, hidden)  # [tokens.E, vocab.F]
        target = shard(target, layout.rest_embed)
        logprob = _pick(out, target, layout.rest_ffn) - log_sum_exp(out, layout.rest_ffn)
        is_greedy = _argmax(out, layout.rest_ffn) == target
        return all_gather(logprob, layout.rest_embed), all_gather(is_greedy, layout.rest_embed)

    targets = flatten(jnp.roll(tokens, -1, axis=1), model, micro_batches)
    by_piece = jnp.swapaxes(targets.reshape(chips, -1, at_a_time), 0, 1).reshape(-1, chips * at_a_time)
    results = lax.map(some, (hidden.reshape(-1, at_a_time, hidden.shape[1]), by_piece))

    def in_order(pieces: Array) -> Array:
        flat = from_last(jnp.swapaxes(pieces.reshape(-1, chips, at_a_time), 0, 1), layout.over_slices)
        return unflatten(flat.reshape(-1), model, tokens.shape[0], micro_batches)

    return in_order(results[0]), in_order(results[1])


def _pick(out: Float[Array, "tokens vocab"], target: Int[Array, " tokens"], axes: Axes) -> Float[Array, " tokens"]:
    """out[token, target[token]] where the vocabulary is split over the axes."""
    columns = out.shape[1]
    at = target - index(axes) * columns
    here = jnp.take_along_axis(out, jnp.clip(at, 0, columns - 1)[:, None], axis=-1)[:, 0]
    return all_reduce(jnp.where((at >= 0) & (at < columns), here, 0.0), axes)


def _argmax(out: Float[Array, "tokens vocab"], axes: Axes) -> Int[Array, " tokens"]:
    """The lowest of the most likely tokens, where the vocabulary is split over the axes."""
    if not axes:
        return jnp.argmax(out, axis=-1).astype(jnp.int32)
    best = out.max(-1)
    first = index(axes) * out.shape[1] + jnp.argmax(out, axis=-1).astype(jnp.int32)
    return -largest(jnp.where(best == largest(best, axes), -first, jnp.iinfo(jnp.int32).min), axes)
