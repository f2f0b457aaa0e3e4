"""Decode: many steps for all slots in one program, with sampling and stopping on the device.

One step embeds every slot's last token, attends to its pages, samples the next token and decides whether to stop. A
chunk of steps runs as one program and returns early when enough slots have finished for a refill to pay.

A step is one tick of the loop, or, in a pipeline, as many as there are stages, one for each group of the slots
(engine/steps/pipeline.py): while one stage has one group, the others have the others. What the last stage samples for
a group goes to all stages, so all chips know all slots there too, and the loop ends on all of them in the same tick.
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
from engine.collectives import all_gather, all_to_all, from_last, hand_on, index, shard
from engine.model.attention import Partial, finish, merge_partials, paged_attention_partial
from engine.model.attention_projections import own_kv_heads
from engine.model.contiguous_attention import contiguous_attention_partial
from engine.model.decoder import final_norm, logits, residual_stream
from engine.model.params import Params
from engine.model.partition import Partition
from engine.model.reductions import log_sum_exp
from engine.steps.pipeline import cut, join, piece, place, with_piece
from engine.steps.sampling import Leaf, SamplingRules, choose, in_runs

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
    params, loop_over_slots = model.at_hand(model.of_stage(params)), attention == "loop"
    layout, vocab = model.layout, model.held.vocab
    everywhere, stages, stage = layout.everything, layout.mesh.slices, index(layout.over_slices)
    groups = jax.tree.map(lambda x: cut(jnp.asarray(x), stages, layout), slots)
    count = slots.token.shape[0] // stages  # in a group
    top = min(TOP_LOGPROBS, model.config.vocab)
    empty = Generated(
        jnp.zeros((steps, stages, count), jnp.int32),
        jnp.zeros((steps, stages, count), jnp.float32),
        jnp.zeros((steps, stages, count, top), jnp.int32),
        jnp.zeros((steps, stages, count, top), jnp.float32),
    )
    owns = jax.tree.map(lambda x: shard(x, everywhere, dim=1), groups)  # what this chip samples for, in each group
    all_ends = jnp.stack([_end_tokens(vocab, piece(owns, jnp.int32(at)), eos_tokens) for at in range(stages)])
    running_at_start = jnp.sum(slots.finish == RUNNING, dtype=jnp.int32)

    def another(groups: Slots, begun: Int[Array, ""]) -> Bool[Array, ""]:
        """Whether to begin one more step."""
        running = jnp.sum(groups.finish == RUNNING, dtype=jnp.int32)
        return (begun < steps) & (running > 0) & (running_at_start - running < enough_finished)

    def go_on(state: _State) -> Bool[Array, ""]:
        return state.tick < state.begun * stages + stages - 1  # after the last group's last tick in the first stage

    def advance(state: _State) -> _State:
        tick, groups, begun, out = state.tick, state.groups, state.begun, state.out
        cache, x = _pass(params, model, state, table[0], tick - stage, attention, page_tokens)
        raw = _logits(params, model, x)
        finished = tick - (stages - 1)  # what the last stage has in this tick; below 0, nothing
        step, group = place(finished, stages)
        slots, own, ends = piece((groups, owns, all_ends), group)
        generated, length = (shard(x, everywhere) for x in (slots.generated, slots.length))
        allowed = ~ends | (generated + 1 > own.min_tokens)[:, None, None]
        token = choose(in_runs(raw, -jnp.inf), own.rules, length + 1, allowed, loop_over_slots)
        normaliser = log_sum_exp(raw)
        logprob = jnp.take_along_axis(raw, token[:, None], axis=-1)[:, 0] - normaliser

        def known(x: Array) -> Array:
            return from_last(all_gather(x, everywhere), layout.over_slices)

        def alternatives() -> tuple[Array, Array]:
            best, ids = lax.top_k(raw, top)
            return known(ids), known(best - normaliser[:, None])

        none = (jnp.zeros((count, top), jnp.int32), jnp.zeros((count, top), jnp.float32))
        top_ids, top_values = lax.cond(jnp.any(slots.top_logprobs), alternatives, lambda: none)
        token = known(token)
        out = Generated(
            out.tokens.at[step, group].set(token),
            out.logprobs.at[step, group].set(known(logprob)),
            out.top_tokens.at[step, group].set(top_ids),
            out.top_logprobs.at[step, group].set(top_values),
        )
        groups = with_piece(groups, group, _after(slots, token, eos_tokens, finished >= 0 if stages > 1 else True))
        begins = (tick + 1 == begun * stages) & another(groups, begun)
        arrived = hand_on(x, "slice") if layout.over_slices else None
        return _State(cache, groups, out, begun + begins.astype(jnp.int32), tick + 1, arrived)

    arrived = None
    if layout.over_slices:
        shape = (count // layout.mesh.size(layout.tokens), model.config.embed // layout.mesh.size(layout.used_embed))
        arrived = jnp.zeros(shape, params["final_norm"].dtype)
    begins = another(groups, jnp.int32(0)).astype(jnp.int32)
    end = lax.while_loop(go_on, advance, _State(cache, groups, empty, begins, jnp.int32(0), arrived))

    def in_order(x: Array) -> Array:
        return jax.vmap(lambda of_step: join(of_step, layout))(x)

    after = jax.tree.map(lambda x: join(x, layout), end.groups)
    return end.cache, after, jax.tree.map(in_order, end.out), end.begun


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class _State:
    """Of the loop, before a tick. A group is begun when it enters the first stage."""

    cache: PagedCache
    groups: Slots  # every leaf [groups, slots of a group, ...]
    out: Generated  # every leaf [steps, groups, slots of a group, ...]
    begun: Leaf  # i32[]: steps, of the first group
    tick: Leaf  # i32[]
    arrived: Leaf  # [residual_tokens, embed]: what the stage before this one handed on; None without a pipeline


def _pass(
    params: Params,
    model: Partition,
    state: _State,
    table: Int[Array, "rows blocks"],
    begun_at: Int[Array, ""],
    attention: Attention,
    page_tokens: int,
) -> tuple[PagedCache, Float[Array, "residual_tokens embed"]]:
    """Takes the group that was begun in tick `begun_at` through this stage's layers, its tokens into their cache.

    A chip that holds a part of every sequence is given all queries; the results over the parts are merged.
    """
    layout, config, cache = model.layout, model.config, state.cache
    stages = layout.mesh.slices
    group = place(begun_at, stages)[1]
    slots = piece(state.groups, group)
    running = slots.finish == RUNNING
    if stages > 1:
        running &= (begun_at >= 0) & (begun_at < state.begun * stages)  # else nothing was begun then
    over_sequence = layout.attention_sequence
    parts, part = layout.mesh.size(over_sequence), index(over_sequence)
    length, running = (shard(x, layout.attention_rows) for x in (slots.length, running))
    rows = length.shape[0]

    def own_rows(x: Array) -> Array:
        return lax.dynamic_slice_in_dim(x, group * rows, rows) if stages > 1 else x

    table = own_rows(table)
    lengths = jnp.where(running, length + 1, 0)
    block = length // page_tokens
    at, offset = block // parts, length % page_tokens
    attend_to: Callable[..., Partial]
    if attention == "contiguous":
        page, offset = own_rows(jnp.arange(rows * stages)), at * page_tokens + offset
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
        pools = cache.keys[layer], cache.values[layer]
        found = attend_to(
            q,
            *(jax.tree.map(own_rows, pools) if attention == "contiguous" else pools),
            scale=config.attention_scale,
            softcap=config.attention_softcap,
            window=config.window(layer),
            first_block=part,
            block_stride=parts,
        )
        mixed = finish(merge_partials(found, over_sequence))  # [own slots, kv_heads, group, head_dim]
        return mixed.astype(q.dtype).reshape(-1, *q.shape[1:])

    x = residual_stream(params, model, slots.token, slots.length, attend, state.arrived)  # sets `cache`
    return cache, x


def _logits(
    params: Params, model: Partition, x: Float[Array, "residual_tokens embed"]
) -> Float[Array, "own_slots vocab"]:
    """Of what follows every slot's token, each chip of its slots."""
    out = logits(params, model, final_norm(params, model, x))
    for axis in reversed(model.layout.rest_ffn):  # [tokens.E, vocab.F] -> [tokens.everything, vocab]
        out = all_to_all(out, axis, split=0, concat=1)
    return out


def _end_tokens(vocab: int, slots: Slots, eos_tokens: tuple[int, ...]) -> Bool[Array, "slots runs run"]:
    """Which tokens would end each slot's sample."""
    ids = in_runs(jnp.arange(vocab), 0)
    eos = jnp.isin(ids, jnp.array(eos_tokens, jnp.int32)) if eos_tokens else jnp.zeros(ids.shape, bool)
    ends = eos[None] & ~slots.ignore_eos[:, None, None]
    for column in range(slots.stop_tokens.shape[1]):
        ends = ends | (ids[None] == slots.stop_tokens[:, column, None, None])
    return ends


def _after(
    slots: Slots, token: Int[Array, " slots"], eos_tokens: tuple[int, ...], chosen: Bool[Array, ""] | bool
) -> Slots:
    """The slots after `token` was chosen, if it was; those that are not running do not change."""
    running = (slots.finish == RUNNING) & chosen
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
