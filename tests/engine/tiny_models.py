"""Tiny models in the shapes of the published families, and one prompt-to-tokens run of the device programs.

No engine and no batcher: prefill, hand-over, decode and logits as the engine composes them, on any mesh.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec as P

from engine.collectives import from_last
from engine.compilation.placement import Placement, spec
from engine.model.config import Experts, ModelConfig, Rotary
from engine.model.decoder import logits
from engine.model.params import Parameter, Params, build, declare, leaves
from engine.model.quantized import Quantized
from engine.steps.prefill import prefill

LLAMA = ModelConfig(
    layers=2,
    embed=64,
    ffn=96,
    heads=12,
    kv_heads=4,
    head_dim=16,
    vocab=325,
    context_tokens=512,
    norm_epsilon=1e-5,
    rotary=Rotary(10_000.0),
    tied_head=False,
)
MODELS = {
    "llama": LLAMA,
    "palm": replace(
        LLAMA, heads=6, kv_heads=1, norm="layer", parallel_block=True, tied_head=True, head_dim=32, activation="silu"
    ),
    "gpt2": replace(
        LLAMA,
        heads=12,
        kv_heads=12,
        rotary=None,
        learned_positions=True,
        norm="layer",
        norm_bias=True,
        attention_bias=True,
        ffn_bias=True,
        gated=False,
        activation="gelu_tanh",
        tied_head=True,
    ),
    "gemma2": replace(
        LLAMA,
        heads=8,
        kv_heads=4,
        norm_scale_from_one=True,
        post_norms=True,
        activation="gelu_tanh",
        embedding_scale=8.0,
        query_scale=0.2,
        attention_softcap=50.0,
        logits_softcap=30.0,
        windows=(24, None),
        tied_head=True,
    ),
    "mixtral": replace(LLAMA, experts=Experts(8, 2)),
}


def random_weights(config: ModelConfig, seed: int = 0) -> Params:
    """numpy float32, spread widely enough that the most likely token is well ahead of the next."""
    rng = np.random.default_rng(seed)

    def make(path: str, declared: Parameter) -> np.ndarray:
        spread = 0.3 if len(declared.shape) > 1 else 0.5
        return (rng.standard_normal(declared.shape) * spread).astype(np.float32)

    return build(config, make)


def padded(params: Params, placement: Placement) -> Params:
    """The weights as they are held: with zeros where heads and vocabulary are padded, layers by stages."""
    stages = placement.held.stages
    padded = _padded(params, placement)
    each = len(padded["layers"]) // stages
    if stages > 1:
        layers = [jax.tree.map(lambda *x: np.stack(x), *padded["layers"][at::each]) for at in range(each)]
        padded = padded | {"layers": layers}
    return padded


def _padded(params: Params, placement: Placement) -> Params:
    held, config = placement.held, placement.config
    group, group_held = config.heads // config.kv_heads, held.heads // held.kv_heads
    heads = np.arange(config.heads)
    where = {
        "heads": heads if group == 1 else heads // group * group_held + heads % group,
        "kv_heads": np.arange(config.kv_heads),
        "vocab": np.arange(config.vocab),
    }
    given, small = dict(leaves(params)), dict(leaves(declare(config)))

    def pad(path: str, declared: Parameter) -> np.ndarray:
        out = np.zeros(declared.shape, given[path].dtype)
        at = [where.get(axis, np.arange(size)) for axis, size in zip(declared.axes, small[path].shape, strict=True)]
        out[np.ix_(*at)] = given[path]
        return out

    return build(config, pad, replace(held, stages=1))


def place(params: Params, placement: Placement) -> Params:
    """On the chips, as they rest."""
    if placement.mesh is None:
        return jax.tree.map(jnp.asarray, params)
    int8 = any(isinstance(leaf, Quantized) for _, leaf in leaves(params))
    specs = placement.param_specs(int8)
    return jax.tree.map(
        lambda leaf, split: jax.device_put(leaf, placement.sharding(split)),
        params,
        specs,
    )


def all_logits(params: Params, placement: Placement, tokens: np.ndarray, micro_batches: int = 1) -> np.ndarray:
    """Logits of every position of `tokens` [rows, seq], by prefill's layout: [rows * seq, vocab] in prefill's order."""
    model = placement.prefill
    layout = model.layout

    def program(params: Params, tokens: Any) -> Any:
        hidden = prefill(params, model, tokens, micro_batches)[2]
        return from_last(logits(params, model, hidden), layout.over_slices)

    run = placement.on_all_chips(program, (placement.param_specs(), P()), spec((layout.rest_embed, layout.rest_ffn)))
    return np.asarray(jax.jit(run)(params, tokens))[:, : placement.config.vocab]
