"""Prefill: keys and values of whole prompts in one pass. No logits: the last prompt token is left to decode.

A prompt of n tokens prefills its first n - 1; its last token is the first input of decode, which samples what follows.
So sampling lives in one program, and prefill ends at the last layer's keys and values.

In a pipeline the rows go through the stages in micro-batches (engine/steps/pipeline.py); what a stage returns are the
keys and values of its own layers.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental.layout import Layout, with_layout_constraint
from jaxtyping import Array, Float, Int

from engine.collectives import all_gather, hand_on, index
from engine.model.attention import causal_attention
from engine.model.attention_projections import own_kv_heads
from engine.model.decoder import final_norm, residual_stream
from engine.model.params import Params
from engine.model.partition import Partition
from engine.model.splash import fits, splash_attention
from engine.steps.pipeline import cut, join, piece, with_piece

_LANES = 128
"""Numbers that fill a row of a TPU's tile."""

KeysOrValues = list[Float[Array, "own_rows own_seq kv_heads head_dim"]]


def prefill(
    params: Params, model: Partition, tokens: Int[Array, "rows seq"], micro_batches: int = 1
) -> tuple[KeysOrValues, KeysOrValues, Float[Array, "residual_tokens embed"]]:
    """Keys and values of every layer, and the final hidden states, of rows padded on the right.

    What stands at a row's padding is meaningless and, by causality, without influence on what stands before it. Every
    chip is given all tokens; it returns the keys and values of its `attention_rows`, `attention_sequence` and
    `kv_heads_held`, and its part of the residual stream, whose tokens are in the order of `flatten`. In a pipeline the
    last stage's alone are hidden states.
    """
    params = model.of_stage(params)
    keys, values, x = (_pipelined if model.layout.over_slices else _pass)(params, model, tokens, micro_batches)
    return keys, values, final_norm(params, model, x)


def _pass(
    params: Params,
    model: Partition,
    tokens: Int[Array, "rows seq"],
    micro_batches: int = 1,
    arrived: Float[Array, "residual_tokens embed"] | None = None,
) -> tuple[KeysOrValues, KeysOrValues, Float[Array, "residual_tokens embed"]]:
    """Through this stage's layers, all rows at once: keys, values, and what stands after the last of them."""
    assert micro_batches == 1, f"{micro_batches=} are for a pipeline"
    layout, config = model.layout, model.config
    rows, seq = tokens.shape
    rows //= layout.mesh.size(layout.attention_rows)
    chunk = seq // layout.mesh.size(layout.attention_sequence)
    keys: KeysOrValues = []
    values: KeysOrValues = []

    def attend(layer: int, q: Array, k: Array, v: Array) -> Array:
        q, k, v = (x.reshape(rows, chunk, *x.shape[1:]) for x in (q, k, v))
        if keys and model.fused_gathers and layout.gathered and config.head_dim % _LANES == 0:
            # Else the compiler puts off bringing those of the layer before into the form in which they are returned,
            # and in the end has all layers' in two forms.
            returned = Layout((0, 2, 1, 3) if k.shape[2] == 1 else (0, 1, 2, 3))
            done = (with_layout_constraint(one[-1], returned) for one in (keys, values))
            k, keys[-1], values[-1] = lax.optimization_barrier((k, *done))
        keys.append(k)
        values.append(v)
        k, v = (own_kv_heads(all_gather(x, layout.attention_sequence, dim=1), model, dim=2) for x in (k, v))
        mixed = _attention(
            model,
            q,
            k,
            v,
            scale=config.attention_scale,
            softcap=config.attention_softcap,
            window=config.window(layer),
            query_start=index(layout.attention_sequence) * chunk,
        )
        return mixed.reshape(rows * chunk, *mixed.shape[2:])

    positions = jnp.broadcast_to(jnp.arange(seq)[None], tokens.shape)
    x = residual_stream(params, model, flatten(tokens, model), flatten(positions, model), attend, arrived)
    return keys, values, x


def _pipelined(
    params: Params, model: Partition, tokens: Int[Array, "rows seq"], micro_batches: int
) -> tuple[KeysOrValues, KeysOrValues, Float[Array, "residual_tokens embed"]]:
    """The same in ticks, micro-batch by micro-batch.

    Before its first micro-batch a stage writes nonsense to where that one will be; after its last it does that one
    once more, from the same numbers, since the first stage does.
    """
    layout, size = model.layout, model.layout.mesh.size
    batches = cut(tokens, micro_batches, layout)  # [micro-batches, rows, seq]
    _, rows, seq = batches.shape
    dtype, stage = params["final_norm"].dtype, index(layout.over_slices)

    def empty(*shape: int) -> Array:
        return jnp.zeros(shape, dtype)

    kv_heads = model.held.kv_heads // size(layout.kv_heads_held(model.held.kv_heads))
    held = (rows // size(layout.attention_rows), seq // size(layout.attention_sequence), kv_heads)
    nothing = empty(rows * seq // size(layout.tokens), model.config.embed // size(layout.used_embed))
    keys, values = (
        [empty(micro_batches, *held, model.config.head_dim) for _ in params["layers"]] for _ in ("keys", "values")
    )

    def tick(number: Array, state: tuple[Array, tuple[list[Array], list[Array], Array]]) -> Any:
        arrived, done = state
        at = jnp.clip(number - stage, 0, micro_batches - 1)
        found = _pass(params, model, piece(batches, at), arrived=arrived)
        return hand_on(found[2], "slice"), with_piece(done, at, found)

    ticks = micro_batches + layout.mesh.slices - 1
    done = (keys, values, empty(micro_batches, *nothing.shape))
    keys, values, x = jax.tree.map(
        lambda pieces: pieces.reshape(-1, *pieces.shape[2:]), lax.fori_loop(0, ticks, tick, (nothing, done))[1]
    )
    return keys, values, x


def _attention(model: Partition, q: Array, k: Array, v: Array, **rules: Any) -> Array:
    blocks = partial(causal_attention, **rules)
    if model.attention_kernel == "blocks" or not fits(q.shape[1], k.shape[1]):
        return blocks(q, k, v)
    return lax.platform_dependent(q, k, v, tpu=partial(splash_attention, **rules), default=blocks)


def flatten(rows: Int[Array, "rows seq"], model: Partition, micro_batches: int = 1) -> Int[Array, " tokens"]:
    """Tokens in the order in which they are split over chips: row by row, or first by part of the sequence.

    Those that a chip has of one micro-batch stand before those of the next.
    """
    layout = model.layout
    parts, chips = layout.mesh.size(layout.attention_sequence), layout.mesh.size(layout.tokens)
    batches = cut(rows, micro_batches, layout)
    flat = jnp.swapaxes(batches.reshape(*batches.shape[:2], parts, -1), 1, 2)
    return jnp.swapaxes(flat.reshape(micro_batches, chips, -1), 0, 1).reshape(-1)


def unflatten(tokens: Array, model: Partition, rows: int, micro_batches: int = 1) -> Array:
    """The reverse of `flatten`: [rows, seq]."""
    layout = model.layout
    parts, chips = layout.mesh.size(layout.attention_sequence), layout.mesh.size(layout.tokens)
    flat = jnp.swapaxes(tokens.reshape(chips, micro_batches, -1), 0, 1)
    batches = jnp.swapaxes(flat.reshape(micro_batches, parts, rows // micro_batches, -1), 1, 2)
    return join(batches.reshape(*batches.shape[:2], -1), layout)
