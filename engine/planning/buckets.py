"""The shapes of programs: what lengths prompts are padded to, and how many rows go in together.

Few lengths, so that few programs are compiled; rows such that every chip has as many.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from engine.layout import Layouts

MIN_ROWS = 8
"""Programs have at least this many rows: below it, CPU matrix products may round a row differently."""

_SMALLEST_BUCKET = 32


@dataclass(frozen=True)
class Parts:
    """What must divide evenly over the chips. All one on a single chip."""

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

    @classmethod
    def of(cls, layouts: Layouts) -> Parts:
        prefill, decode, size = layouts.prefill, layouts.decode, layouts.mesh.size
        rows = math.lcm(size(prefill.attention_rows), size(decode.attention_rows))
        return cls(
            chips=layouts.mesh.chips,
            of_slots=size(decode.attention_rows),
            of_sequence=size(decode.attention_sequence),
            prefill_rows=rows,
            of_prefilled_sequence=size(prefill.attention_sequence),
        )


def slot_rows(slots: int, chips: int) -> int:
    """Rows of the decode program; those beyond `slots` stay empty."""
    return _up_to(max(slots, MIN_ROWS), chips)


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
    multiple = math.lcm(parts.prefill_rows, parts.chips // math.gcd(bucket, parts.chips))
    return _up_to(max(1, tokens // bucket), multiple)


def _up_to(size: int, multiple: int) -> int:
    return -(-size // multiple) * multiple
