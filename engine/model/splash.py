"""Causal attention by jax's splash kernel for TPUs: tiles of logits that live and die in vector memory.

`causal_attention` writes its logits, weights and running sums to HBM block by block, and one row and one block at a
time; the kernel (jax.experimental.pallas.ops.tpu.splash_attention, after Dao et al. 2022) keeps them on the chip and
fetches the next tile while it computes. It gives the same numbers up to rounding, by the same rules: tiles that no
query may see are neither fetched nor computed.

The kernel knows no scale, so queries are scaled before it, in float32, and rounded back to their dtype: exact where
the scale is a power of two (head_dim 64 or 256), else one more rounding of the queries.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental.pallas.ops.tpu.splash_attention import (
    BlockSizes,
    CausalMask,
    LocalMask,
    MultiHeadMask,
    make_splash_mha,
)
from jax.experimental.pallas.ops.tpu.splash_attention.splash_attention_kernel import SplashAttentionKernel
from jaxtyping import Array, Float, Int

_LANES = 128
_TILE = 512
"""Of queries and of keys. A tile of keys is read once for a tile of queries of each head, so 512 of those are about
as many FLOPs a byte as a TPU has; with more, more of the tiles on the diagonal is computed for nothing."""


def fits(seq: int, kv_seq: int) -> bool:
    """Whether the kernel takes so many queries and keys: whole tiles, and the queries an even part of the keys."""
    return seq % _LANES == 0 and kv_seq % seq == 0


def tile(seq: int) -> int:
    """Positions in a tile: the largest power of two up to 512 that divides `seq`."""
    return min(_TILE, seq & -seq)


def splash_attention(
    queries: Float[Array, "rows seq heads head_dim"],
    keys: Float[Array, "rows kv_seq kv_heads head_dim"],
    values: Float[Array, "rows kv_seq kv_heads head_dim"],
    *,
    scale: float | None = None,
    softcap: float | None = None,
    window: int | None = None,
    query_start: int | Int[Array, ""] = 0,
    interpret: bool = False,
) -> Float[Array, "rows seq heads head_dim"]:
    """`causal_attention`, for sizes that fit. `query_start` is a multiple of `seq`: which even part the queries are.

    `interpret` runs the kernel without a TPU, slowly.
    """
    _, seq, heads, head_dim = queries.shape
    kv_seq = keys.shape[1]
    kernel = _part(_kernel(heads, seq, kv_seq, softcap, window, interpret), seq, kv_seq, query_start)
    scaled = queries.astype(jnp.float32) * (head_dim**-0.5 if scale is None else scale)
    by_head = [_heads_first(x) for x in (scaled.astype(queries.dtype), keys, values)]
    return jnp.swapaxes(jax.vmap(kernel, in_axes=1)(*by_head), 1, 2)


def _heads_first(x: Float[Array, "rows seq heads head_dim"]) -> Float[Array, "heads rows seq head_dim"]:
    """By way of flat tokens, as they come out of a product: one transposition, where rows would cost another."""
    rows, seq, heads, head_dim = x.shape
    return jnp.swapaxes(x.reshape(rows * seq, heads, head_dim), 0, 1).reshape(heads, rows, seq, head_dim)


@lru_cache(maxsize=64)
def _kernel(heads: int, seq: int, kv_seq: int, softcap: float | None, window: int | None, interpret: bool) -> Any:
    """For all parts of the queries; which tiles each of them needs stands in small tables, here as numpy arrays."""
    shape = (kv_seq, kv_seq)
    mask = CausalMask(shape) if window is None else LocalMask(shape, (window - 1, 0), 0)
    with jax.ensure_compile_time_eval():
        kernel = make_splash_mha(
            MultiHeadMask([mask] * heads),
            block_sizes=BlockSizes(block_q=tile(seq), block_kv=tile(kv_seq)),
            head_shards=1,
            q_seq_shards=kv_seq // seq,
            attn_logits_soft_cap=softcap,
            interpret=interpret,
        )
        return jax.tree.map(np.asarray, kernel)


def _part(kernel: Any, seq: int, kv_seq: int, query_start: int | Int[Array, ""]) -> Any:
    """The kernel for the queries from `query_start` on."""
    if seq == kv_seq:
        return kernel
    tables = kernel.fwd_mask_info
    at = query_start // tile(seq)

    def own(table: Any) -> Any:
        return None if table is None else lax.dynamic_slice_in_dim(table, at, seq // tile(seq), axis=1)

    own_tables = tables._replace(
        data_next=own(tables.data_next),
        mask_next=own(tables.mask_next),
        block_mask=own(tables.block_mask),
        q_sequence=lax.dynamic_slice_in_dim(tables.q_sequence, query_start, seq),
    )
    return SplashAttentionKernel(own_tables, None, None, **kernel.kwargs)
