"""Score: log-probabilities of tokens that are already there (teacher forcing), with bounded memory.

Logits are made, reduced and dropped for a few dozen positions at a time: [positions, vocab] of a whole batch, the
usual way to run out of memory, never exists.
"""

from __future__ import annotations

import math

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from engine.model.config import ModelConfig
from engine.model.decoder import logits
from engine.model.params import Params
from engine.model.reductions import log_sum_exp
from engine.steps.prefill import prefill

_POSITIONS_AT_A_TIME = 64


def score(
    params: Params, config: ModelConfig, tokens: Int[Array, "rows seq"]
) -> tuple[Float[Array, "rows seq"], Bool[Array, "rows seq"]]:
    """At position t: log P(tokens[t + 1] | tokens[: t + 1]) and whether tokens[t + 1] was the most likely token.

    The last column has no next token and is meaningless, as is all padding on the right.
    """
    rows, seq = tokens.shape
    hidden = prefill(params, config, tokens)[2]
    targets = jnp.roll(tokens, -1, axis=1)
    at_a_time = math.gcd(rows * seq, _POSITIONS_AT_A_TIME)

    def some(piece: tuple[Array, Array]) -> tuple[Array, Array]:
        hidden, target = piece
        out = logits(params, hidden)
        of_target = jnp.take_along_axis(out, target[:, None], axis=-1)[:, 0]
        return of_target - log_sum_exp(out), jnp.argmax(out, axis=-1).astype(target.dtype) == target

    pieces = (hidden.reshape(-1, at_a_time, config.embed), targets.reshape(-1, at_a_time))
    logprobs, greedy = lax.map(some, pieces)
    return logprobs.reshape(rows, seq), greedy.reshape(rows, seq)
