"""Decode: many steps for all slots in one program, with sampling and stopping on the device.

One step embeds every slot's last token, attends to its pages, samples the next token and decides whether to stop. A
chunk of steps runs as one program and returns early when enough slots have finished for a refill to pay.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from engine.cache import pages
from engine.cache.forms import Attention
from engine.cache.pages import NULL_PAGE, PagedCache
from engine.collectives import all_gather, all_to_all, index, shard
from engine.model.attention import Partial, finish, merge_partials, paged_attention_partial
from engine.model.attention_projections import own_kv_heads
from engine.model.contiguous_attention import contiguous_attention_partial
from engine.model.decoder import hidden_states, logits
from engine.model.params import Params
from engine.model.partition import Partition
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


def empty_slots(rows: int, stops: int) -> Slots:
    """On the host; nothing runs. `stops` is how many stop tokens a slot has room for."""

    def of(dtype: type, *shape: int) -> np.ndarray:
        return np.zeros((rows, *shape), dtype)

    return Slots(
        token=of(np.int32),
        length=of(np.int32),
        generated=of(np.int32),
        finish=np.full(rows, LENGTH, np.int32),
        max_tokens=of(np.int32),
        min_tokens=of(np.int32),
        stop_tokens=of(np.int32, stops) - 1,
        ignore_eos=of(np.bool_),
        top_logprobs=of(np.bool_),
        rules=SamplingRules(
            temperature=of(np.float32),
            top_k=of(np.int32),
            top_p=of(np.float32) + 1,
            min_p=of(np.float32),
            key=of(np.uint32, 5),
        ),
    )


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
    model: Partition,
    cache: PagedCache,
    table: Int[Array, "1 rows blocks"],
    slots: Slots,
    eos_tokens: tuple[int, ...],
    enough_finished: Int[Array, ""],
    steps: int,
    attention: Attention,
    page_tokens: int,
) -> tuple[PagedCache, Slots, Generated, Int[Array, ""]]:
    """Up to `steps` steps; ends sooner once `enough_finished` of the slots that ran have finished, or all have.

    Returns the cache, the slots, the tokens, and how many steps ran. Every chip knows all slots; of the cache and the
    page table it has its own part: the rows of its slots, or of all slots and every n-th page. Sequences are cut into
    pages of `page_tokens`; those of a contiguous cache hold many of them, and the table is not looked at.
    """
    loop_over_slots = attention == "loop"
    count = slots.token.shape[0]
    everywhere = model.layout.everything
    top = min(TOP_LOGPROBS, model.config.vocab)
    empty = Generated(
        jnp.zeros((steps, count), jnp.int32),
        jnp.zeros((steps, count), jnp.float32),
        jnp.zeros((steps, count, top), jnp.int32),
        jnp.zeros((steps, count, top), jnp.float32),
    )
    own = jax.tree.map(lambda x: shard(jnp.asarray(x), everywhere), slots)  # what this chip samples for
    ends = _end_tokens(model.held.vocab, own, eos_tokens)
    running_at_start = jnp.sum(slots.finish == RUNNING, dtype=jnp.int32)

    def go_on(state: tuple[PagedCache, Slots, Generated, Int[Array, ""]]) -> Bool[Array, ""]:
        _, slots, _, step = state
        running = jnp.sum(slots.finish == RUNNING, dtype=jnp.int32)
        return (step < steps) & (running > 0) & (running_at_start - running < enough_finished)

    def advance(
        state: tuple[PagedCache, Slots, Generated, Int[Array, ""]],
    ) -> tuple[PagedCache, Slots, Generated, Int[Array, ""]]:
        cache, slots, out, step = state
        cache, raw = _logits(params, model, cache, table[0], slots, attention, page_tokens)
        generated, length = (shard(x, everywhere) for x in (slots.generated, slots.length))
        allowed = ~ends | (generated + 1 > own.min_tokens)[:, None]
        token = choose(raw, own.rules, length + 1, allowed, loop_over_slots)
        normaliser = log_sum_exp(raw)
        logprob = jnp.take_along_axis(raw, token[:, None], axis=-1)[:, 0] - normaliser

        def alternatives() -> tuple[Array, Array]:
            best, ids = lax.top_k(raw, top)
            return all_gather(ids, everywhere), all_gather(best - normaliser[:, None], everywhere)

        none = (jnp.zeros((count, top), jnp.int32), jnp.zeros((count, top), jnp.float32))
        top_ids, top_values = lax.cond(jnp.any(slots.top_logprobs), alternatives, lambda: none)
        token = all_gather(token, everywhere)
        out = Generated(
            out.tokens.at[step].set(token),
            out.logprobs.at[step].set(all_gather(logprob, everywhere)),
            out.top_tokens.at[step].set(top_ids),
            out.top_logprobs.at[step].set(top_values),
        )
        return cache, _after(slots, token, eos_tokens), out, step + 1

    return lax.while_loop(go_on, advance, (cache, slots, empty, jnp.int32(0)))


def _logits(
    params: Params,
    model: Partition,
    cache: PagedCache,
    table: Int[Array, "rows blocks"],
    slots: Slots,
    attention: Attention,
    page_tokens: int,
) -> tuple[PagedCache, Float[Array, "own_slots vocab"]]:
    """Puts every running slot's token into the cache and returns the logits of what follows it, each chip of its slots.

    A chip that holds a part of every sequence is given all queries; the results over the parts are merged.
    """
    layout, config = model.layout, model.config
    over_sequence = layout.attention_sequence
    parts, part = layout.mesh.size(over_sequence), index(over_sequence)
    length, running = (shard(x, layout.attention_rows) for x in (slots.length, slots.finish == RUNNING))
    lengths = jnp.where(running, length + 1, 0)
    block = length // page_tokens
    at, offset = block // parts, length % page_tokens
    attend_to: Callable[..., Partial]
    if attention == "contiguous":
        page, offset = jnp.arange(length.shape[0]), at * page_tokens + offset
        attend_to = partial(contiguous_attention_partial, lengths=lengths, block_tokens=page_tokens)
    else:
        page = jnp.take_along_axis(table, jnp.minimum(at, table.shape[1] - 1)[:, None], axis=1)[:, 0]
        attend_to = partial(paged_attention_partial, table=table, lengths=lengths, loop_over_slots=attention == "loop")
    page = jnp.where(running & (block % parts == part), page, NULL_PAGE)

    def attend(layer: int, q: Array, k: Array, v: Array) -> Array:
        nonlocal cache
        q, k, v = (all_gather(x, over_sequence) for x in (q, k, v))
        k, v = (own_kv_heads(x, model, dim=1) for x in (k, v))
        cache = pages.append(cache, layer, k, v, page, offset)
        found = attend_to(
            q,
            cache.keys[layer],
            cache.values[layer],
            scale=config.attention_scale,
            softcap=config.attention_softcap,
            window=config.window(layer),
            first_block=part,
            block_stride=parts,
        )
        mixed = finish(merge_partials(found, over_sequence))  # [own slots, kv_heads, group, head_dim]
        return mixed.astype(q.dtype).reshape(-1, *q.shape[1:])

    out = logits(params, model, hidden_states(params, model, slots.token, slots.length, attend))
    for axis in reversed(layout.rest_ffn):  # [tokens.E, vocab.F] -> [tokens.everything, vocab]
        out = all_to_all(out, axis, split=0, concat=1)
    return cache, out


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
