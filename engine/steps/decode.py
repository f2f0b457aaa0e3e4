"""Decode: many steps for all slots in one program, with sampling and stopping on the device.

One step embeds every slot's last token, attends to its pages, samples the next token and decides whether to stop. A
chunk of steps runs as one program and returns early when enough slots have finished for a refill to pay.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from engine.cache import pages
from engine.cache.pages import NULL_PAGE, PagedCache
from engine.model.attention import paged_attention
from engine.model.config import ModelConfig
from engine.model.decoder import hidden_states, logits
from engine.model.params import Params
from engine.model.reductions import log_sum_exp
from engine.steps.sampling import Leaf, SamplingRules, choose

TOP_LOGPROBS = 20

RUNNING, END_OF_SEQUENCE, STOP_TOKEN, LENGTH = range(4)
"""Values of `Slots.finish`."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Slots:
    """Every slot's sample. The host owns this between chunks; nothing else knows a length."""

    token: Leaf  # i32[slots]: the newest token, not yet in the cache
    length: Leaf  # i32[slots]: positions in the cache; also the position of `token`
    generated: Leaf  # i32[slots]
    finish: Leaf  # i32[slots]: RUNNING, or why it ended; an empty slot is simply not RUNNING
    max_tokens: Leaf  # i32[slots]
    min_tokens: Leaf  # i32[slots]
    stop_tokens: Leaf  # i32[slots, stops], padded with -1
    ignore_eos: Leaf  # bool[slots]
    top_logprobs: Leaf  # bool[slots]: the most likely alternatives are wanted too
    rules: SamplingRules


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Generated:
    """What a chunk produced: row i is step i. A slot's own tokens are its first rows, as `generated` grew by."""

    tokens: Leaf  # i32[steps, slots]
    logprobs: Leaf  # f32[steps, slots]
    top_tokens: Leaf  # i32[steps, slots, top]
    top_logprobs: Leaf  # f32[steps, slots, top]


def decode(
    params: Params,
    config: ModelConfig,
    cache: PagedCache,
    table: Int[Array, "slots blocks"],
    slots: Slots,
    eos_tokens: tuple[int, ...],
    enough_finished: Int[Array, ""],
    steps: int,
    loop_over_slots: bool,
) -> tuple[PagedCache, Slots, Generated, Int[Array, ""]]:
    """Up to `steps` steps; ends sooner once `enough_finished` of the slots that ran have finished, or all have.

    Returns the cache, the slots, the tokens, and how many steps ran.
    """
    count = slots.token.shape[0]
    top = min(TOP_LOGPROBS, config.vocab)
    empty = Generated(
        jnp.zeros((steps, count), jnp.int32),
        jnp.zeros((steps, count), jnp.float32),
        jnp.zeros((steps, count, top), jnp.int32),
        jnp.zeros((steps, count, top), jnp.float32),
    )
    ends = _end_tokens(config.vocab, slots, eos_tokens)
    running_at_start = jnp.sum(slots.finish == RUNNING, dtype=jnp.int32)

    def go_on(state: tuple[PagedCache, Slots, Generated, Int[Array, ""]]) -> Bool[Array, ""]:
        _, slots, _, step = state
        running = jnp.sum(slots.finish == RUNNING, dtype=jnp.int32)
        return (step < steps) & (running > 0) & (running_at_start - running < enough_finished)

    def advance(
        state: tuple[PagedCache, Slots, Generated, Int[Array, ""]],
    ) -> tuple[PagedCache, Slots, Generated, Int[Array, ""]]:
        cache, slots, out, step = state
        cache, raw = _logits(params, config, cache, table, slots, loop_over_slots)
        allowed = ~ends | (slots.generated + 1 > slots.min_tokens)[:, None]
        token = choose(raw, slots.rules, slots.length + 1, allowed, loop_over_slots)
        normaliser = log_sum_exp(raw)
        logprob = jnp.take_along_axis(raw, token[:, None], axis=-1)[:, 0] - normaliser

        def alternatives() -> tuple[Array, Array]:
            best, ids = lax.top_k(raw, top)
            return ids, best - normaliser[:, None]

        none = (jnp.zeros((count, top), jnp.int32), jnp.zeros((count, top), jnp.float32))
        top_ids, top_values = lax.cond(jnp.any(slots.top_logprobs), alternatives, lambda: none)
        out = Generated(
            out.tokens.at[step].set(token),
            out.logprobs.at[step].set(logprob),
            out.top_tokens.at[step].set(top_ids),
            out.top_logprobs.at[step].set(top_values),
        )
        return cache, _after(slots, token, eos_tokens), out, step + 1

    return lax.while_loop(go_on, advance, (cache, slots, empty, jnp.int32(0)))


def _logits(
    params: Params,
    config: ModelConfig,
    cache: PagedCache,
    table: Int[Array, "slots blocks"],
    slots: Slots,
    loop_over_slots: bool,
) -> tuple[PagedCache, Float[Array, "slots vocab"]]:
    """Puts every running slot's token into the cache and returns the logits of what follows it."""
    running = slots.finish == RUNNING
    block = jnp.minimum(slots.length // cache.page_tokens, table.shape[1] - 1)
    page = jnp.where(running, jnp.take_along_axis(table, block[:, None], axis=1)[:, 0], NULL_PAGE)
    offset = slots.length % cache.page_tokens
    lengths = jnp.where(running, slots.length + 1, 0)

    def attend(layer: int, q: Array, k: Array, v: Array) -> Array:
        nonlocal cache
        cache = pages.append(cache, layer, k, v, page, offset)
        return paged_attention(q, cache.keys[layer], cache.values[layer], table, lengths, loop_over_slots)

    hidden = hidden_states(params, config, slots.token, slots.length, attend)
    return cache, logits(params, hidden)


def _end_tokens(vocab: int, slots: Slots, eos_tokens: tuple[int, ...]) -> Bool[Array, "slots vocab"]:
    """Which tokens would end each slot's sample."""
    ids = jnp.arange(vocab)
    eos = jnp.isin(ids, jnp.array(eos_tokens, jnp.int32)) if eos_tokens else jnp.zeros(vocab, bool)
    ends = eos[None, :] & ~slots.ignore_eos[:, None]
    for column in range(slots.stop_tokens.shape[1]):
        ends = ends | (ids[None, :] == slots.stop_tokens[:, column, None])
    return ends


def _after(slots: Slots, token: Int[Array, " slots"], eos_tokens: tuple[int, ...]) -> Slots:
    """The slots after `token` was chosen; those that are not running do not change."""
    running = slots.finish == RUNNING
    generated = slots.generated + 1
    is_stop = (token[:, None] == slots.stop_tokens).any(-1)
    is_eos = ~slots.ignore_eos & (jnp.isin(token, jnp.array(eos_tokens, jnp.int32)) if eos_tokens else False)
    finish = jnp.where(generated >= slots.max_tokens, LENGTH, RUNNING)
    finish = jnp.where(is_stop, STOP_TOKEN, jnp.where(is_eos, END_OF_SEQUENCE, finish)).astype(slots.finish.dtype)
    return replace(
        slots,
        token=jnp.where(running, token, slots.token),
        length=jnp.where(running, slots.length + 1, slots.length),
        generated=jnp.where(running, generated, slots.generated),
        finish=jnp.where(running, finish, slots.finish),
    )
