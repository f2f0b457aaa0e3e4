"""What to halve when a program does not fit the device's memory. Results do not depend on it, only how fast they come.

Slots decide over the cache and what decode needs besides; the tokens that go through at a time decide over what prefill
and scoring need. Halved is first what bears on the call that failed, and the other when that is as small as it can be.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from engine.compilation.options import DecodeOptions

PREFILLING = ("prefill", "score")
"""The calls that go through tokens of prompts; the others need the cache and the slots."""


def smaller(options: DecodeOptions, during: str) -> DecodeOptions | None:
    """Options that need less memory; None when there are none. `during` is the call that did not fit."""
    ways: list[Callable[[DecodeOptions], DecodeOptions | None]] = [_fewer_slots, _fewer_tokens]
    if during in PREFILLING:
        ways.reverse()
    return next((found for way in ways if (found := way(options))), None)


def difference(before: DecodeOptions, after: DecodeOptions) -> str:
    """In words."""
    names = [name for name in ("slots", "pages", "prefill_tokens") if getattr(before, name) != getattr(after, name)]
    return ", ".join(f"{name} {getattr(after, name)} instead of {getattr(before, name)}" for name in names)


def _fewer_slots(options: DecodeOptions) -> DecodeOptions | None:
    """Half the slots, and half the pages, but as many as the longest request needs."""
    least = -(-options.blocks_per_slot // options.parts.of_sequence) + 1
    half = replace(options, slots=max(1, options.slots // 2), pages=max(least, options.pages // 2))

    def size(some: DecodeOptions) -> tuple[int, int]:
        return some.slot_rows, some.pages_in_part

    return half if size(half) < size(options) else None


def _fewer_tokens(options: DecodeOptions) -> DecodeOptions | None:
    """Half the tokens, or as many halves less as it takes for the largest program to have fewer rows."""

    def largest(some: DecodeOptions) -> int:
        return max(some.rows(bucket) * bucket // some.micro_batches(bucket) for bucket in some.buckets)

    tokens = options.prefill_tokens
    while tokens > 1:
        tokens //= 2
        half = replace(options, prefill_tokens=tokens)
        if largest(half) < largest(options):
            return half
    return None
