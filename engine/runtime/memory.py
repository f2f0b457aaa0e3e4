"""What of a device's memory weights and cache take: options that fit it, and the figures when nothing does."""

from __future__ import annotations

import logging
from typing import Any

import jax

from engine.cache.pages import page_bytes
from engine.compilation.options import DecodeOptions, choose_options
from engine.compilation.placement import Placement
from engine.errors import OutOfMemory
from engine.model.params import Params, leaves
from engine.model.quantized import Quantized
from engine.runtime.device_check import memory_stat
from engine.runtime.loading import Loaded

logger = logging.getLogger(__name__)

_CPU_CACHE_BYTES = 2 << 30


def fitting_options(
    loaded: Loaded, slots: int | None, max_length: int | None, prefill_tokens: int | None
) -> DecodeOptions:
    """What is asked for, and the rest such that the cache fits beside the weights."""
    options = choose_options(
        platform=loaded.device.platform,
        context_tokens=loaded.placement.config.context_tokens,
        page_bytes_per_token=_bytes_per_token(loaded.placement, loaded.kv_dtype),
        cache_budget_bytes=_cache_budget_bytes(loaded.device, loaded.params),
        slots=slots,
        max_length=max_length,
        prefill_tokens=prefill_tokens,
        kv_dtype=loaded.kv_dtype,
        layouts=loaded.placement.layouts,
    )
    layouts = loaded.placement.layouts
    logger.info("engine: %s on %s x %s, %s, %s", loaded.dtype, layouts.mesh, loaded.device, layouts, options)
    return options


def is_out_of_memory(error: Exception) -> bool:
    """Of a device, as its backend says it, or of the host."""
    return isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error)


def too_large(
    doing: str, params: Params, placement: Placement, options: DecodeOptions, failure: OutOfMemory, several_hosts: bool
) -> OutOfMemory:
    """The failure, when nothing smaller is left to try, with the figures and what to change."""
    limit = memory_stat(devices_of(params)[0], "bytes_limit")
    cache = options.pages_in_part * options.positions_in_page * _bytes_per_token(placement, options.kv_dtype)
    batch = (
        f"on several hosts, where the batch is not made smaller: set engine.slots below {options.slots}"
        if several_hosts
        else "with the smallest batch there can be"
    )
    return OutOfMemory(
        f"the device ran out of memory in {doing}, {batch}. Weights take {_gib(held_bytes(params))} and the cache "
        f"{_gib(cache)}{f' of {_gib(limit)}' if limit else ''}, for {options.slots} slots of {options.max_length} "
        f"tokens; {options.prefill_tokens} tokens of prompts go through at a time. Lower engine.max_length, hold less "
        f"(model.weights: int8, model.kv: int8), or use more chips (engine.mesh) ({failure})"
    )


def devices_of(params: Params) -> list[Any]:
    """That hold the parameters: those of this process first."""
    here = jax.process_index()
    return sorted(
        jax.tree.leaves(params)[0].sharding.device_set, key=lambda device: (device.process_index != here, device.id)
    )


def computed_in(params: Params) -> str:
    """The dtype of activations: that of the parameters that are not quantised."""
    return next(str(leaf.dtype) for _, leaf in leaves(params) if not isinstance(leaf, Quantized))


def held_bytes(params: Params) -> int:
    """Of the parameters on each chip."""
    return sum(array.addressable_shards[0].data.nbytes for array in jax.tree.leaves(params))


def _cache_budget_bytes(device: Any, params: Params) -> int:
    """Memory the KV cache may take on each chip: on CPU a fixed amount, elsewhere most of what the weights leave."""
    if device.platform == "cpu":
        return _CPU_CACHE_BYTES // len(jax.local_devices())
    return int(0.85 * (memory_stat(device, "bytes_limit") or 16 << 30)) - held_bytes(params)


def _bytes_per_token(placement: Placement, kv_dtype: str) -> int:
    """Of the cache, on a chip that holds the token."""
    decode = placement.decode
    return page_bytes(placement.config, 1, kv_dtype, decode.cache_kv_heads) // decode.held.stages


def _gib(size_bytes: int) -> str:
    return f"{size_bytes / 2**30:.2f} GiB"
