"""The shapes of programs: what lengths prompts are padded to, and how many rows go in together.

Few lengths, so that few programs are compiled; rows such that every chip has as many.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

from engine.layout import Layouts

MIN_ROWS = 8
"""Programs have at least this many rows: below it, CPU matrix products may round a row differently."""

MICRO_BATCHES = 4
"""Of prefill in a pipeline, for each stage, where there are rows for so many: a stage then idles less than a fifth."""

PAGE_TOKENS = 128
"""Positions in a page of the cache, on an accelerator."""
CHUNK_STEPS = 32
"""Most decode steps in one call, on an accelerator."""

_SMALLEST_BUCKET = 32


@dataclass(frozen=True)
class Parts:
    """What must divide evenly over the chips of a slice. All one on a single chip."""

    chips: int = 1
    """Slots are a multiple of this: each chip samples for its share."""
    of_slots: int = 1
    """Parts of the cache that hold slots of their own."""
    of_sequence: int = 1
    """Parts of the cache that hold every n-th page of every slot."""
    prefill_rows: int = 1
    """Rows of a prefill or score program are a multiple of this."""
    of_prefilled_sequence: int = 1
    """Length buckets are a multiple of this."""
    stages: int = 1
    """Of the pipeline over slices; slots are in as many groups, and each of them divides."""

    @classmethod
    def of(cls, layouts: Layouts) -> Parts:
        prefill, decode, size = layouts.prefill, layouts.decode, layouts.mesh.size
        rows = math.lcm(size(prefill.attention_rows), size(decode.attention_rows))
        return cls(
            chips=layouts.mesh.slice_chips,
            of_slots=size(decode.attention_rows),
            of_sequence=size(decode.attention_sequence),
            prefill_rows=rows,
            of_prefilled_sequence=size(prefill.attention_sequence),
            stages=layouts.mesh.slices,
        )


def slot_rows(slots: int, chips: int, stages: int = 1) -> int:
    """Rows of the decode program on the chips of each slice; those beyond `slots` stay empty."""
    return _up_to(max(slots, MIN_ROWS * stages), chips * stages)


@lru_cache(maxsize=1024)
def length_buckets(max_length: int, page_tokens: int, of_sequence: int = 1) -> tuple[int, ...]:
    """Powers of two, with a step between them from two pages up; multiples of `of_sequence`."""
    lengths, length = [], min(_SMALLEST_BUCKET, page_tokens)
    while length % of_sequence:
        length *= 2
    while length < max_length:
        lengths.append(length)
        if length % (2 * page_tokens) == 0 and length * 3 // 2 < max_length:
            lengths.append(length * 3 // 2)
        length *= 2
    lengths.append(_up_to(max_length, math.lcm(page_tokens, of_sequence)))
    return tuple(sorted(set(lengths)))


def bucket_rows(bucket: int, tokens: int, parts: Parts) -> int:
    """Rows of the prefill and score programs of a bucket, which hold about so many tokens."""
    return _up_to(max(1, tokens // bucket), _fewest_rows(bucket, parts) * micro_batches(bucket, tokens, parts))


def micro_batches(bucket: int, tokens: int, parts: Parts) -> int:
    """That these rows go through a pipeline in."""
    if parts.stages == 1:
        return 1
    return min(max(parts.stages, tokens // bucket // _fewest_rows(bucket, parts)), MICRO_BATCHES * parts.stages)


def _fewest_rows(bucket: int, parts: Parts) -> int:
    """That divide over the chips of a slice."""
    return math.lcm(parts.prefill_rows, parts.chips // math.gcd(bucket, parts.chips))


def _up_to(size: int, multiple: int) -> int:
    return -(-size // multiple) * multiple
