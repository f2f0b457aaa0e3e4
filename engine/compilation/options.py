"""How a run is shaped: slots, pages, buckets and chunk lengths. They bear on speed and memory, never on results."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass, replace

from engine.cache.forms import Attention
from engine.errors import NoFeasiblePlan
from engine.layout import Layouts
from engine.planning.buckets import (
    CHUNK_STEPS,
    PAGE_TOKENS,
    Parts,
    bucket_rows,
    length_buckets,
    micro_batches,
    slot_rows,
)

MAX_STOP_TOKEN_IDS = 8
"""Of a request; the device compares each new token with this many."""


@dataclass(frozen=True)
class DecodeOptions:
    """The shape of every program the engine runs."""

    slots: int
    """Samples decoded at the same time."""
    max_length: int
    """Tokens of the longest request, prompt and answer together."""
    pages: int
    """Pages in each part of the cache; a contiguous cache has one for each slot instead."""
    page_tokens: int
    """Positions in a page, and, where sequences are split over chips, those that stay together."""
    chunk_steps: int
    """Most decode steps in one call of the program."""
    prefill_tokens: int
    """Tokens one prefill or score program holds, where a single row does not hold more."""
    attention: Attention
    kv_dtype: str = "float32"
    """Of the cache: float32, bfloat16 or int8."""
    parts: Parts = Parts()

    @property
    def slot_rows(self) -> int:
        """Rows of the decode program; those beyond `slots` stay empty."""
        return slot_rows(self.slots, self.parts.chips, self.parts.stages)

    @property
    def blocks_per_slot(self) -> int:
        """Pages of the longest sequence; where sequences are split, they are the same number on every chip."""
        return _up_to(-(-self.max_length // self.page_tokens), self.parts.of_sequence)

    @property
    def pages_in_part(self) -> int:
        """Pages in each part of the cache."""
        return self.slot_rows // self.parts.of_slots if self.attention == "contiguous" else self.pages

    @property
    def positions_in_page(self) -> int:
        """As allocated."""
        longest = self.blocks_per_slot // self.parts.of_sequence * self.page_tokens
        return longest if self.attention == "contiguous" else self.page_tokens

    def pages_of(self, positions: int) -> int:
        """Pages that a sequence of this many positions takes in each part of the cache that has any of it."""
        if self.attention == "contiguous":
            return 1
        return -(-positions // (self.page_tokens * self.parts.of_sequence))

    @property
    def buckets(self) -> tuple[int, ...]:
        """Lengths that prompts are padded to."""
        return length_buckets(self.max_length, self.page_tokens, self.parts.of_prefilled_sequence)

    def bucket(self, tokens: int) -> int:
        """The shortest bucket that holds `tokens`."""
        return self.buckets[bisect_left(self.buckets, tokens)]

    def rows(self, bucket: int) -> int:
        """Rows of the prefill and score programs of this bucket."""
        return bucket_rows(bucket, self.prefill_tokens, self.parts)

    def micro_batches(self, bucket: int) -> int:
        """That these rows go through a pipeline in."""
        return micro_batches(bucket, self.prefill_tokens, self.parts)


def choose_options(
    *,
    platform: str,
    context_tokens: int,
    page_bytes_per_token: int,
    cache_budget_bytes: int,
    slots: int | None = None,
    max_length: int | None = None,
    prefill_tokens: int | None = None,
    kv_dtype: str = "float32",
    layouts: Layouts | None = None,
) -> DecodeOptions:
    """Options for a backend; `slots`, `max_length` and `prefill_tokens` are honoured if given and chosen otherwise.

    The cache holds what all slots could need at the longest length, or `cache_budget_bytes` of each chip if that is
    less: slots then wait for pages. `page_bytes_per_token` is what a position takes on a chip that holds it. Raises
    NoFeasiblePlan when what was asked for cannot be.

    On an accelerator the cache is contiguous if it fits for all slots: then no slot would gain by another's pages,
    and reading the cache as it lies is the fastest. If not, pages let more samples run than would fit at full length.
    On CPU work is what costs, so attention walks each slot's own pages.
    """
    parts = Parts.of(layouts) if layouts else Parts()
    cpu = platform == "cpu"
    page_tokens = 64 if cpu else PAGE_TOKENS
    if slots is None:
        slots = 64 if cpu else 256
    if slots < 1:
        raise NoFeasiblePlan(f"engine.slots must be at least 1; got {slots}")
    if max_length is not None and not 2 <= max_length <= context_tokens:
        raise NoFeasiblePlan(
            f"engine.max_length must be between 2 and the model's context of {context_tokens} tokens; got {max_length}"
        )
    most_pages = cache_budget_bytes // (page_bytes_per_token * page_tokens) - 1  # one to spare
    longest = min(max_length or context_tokens, most_pages * page_tokens * parts.of_sequence)
    if longest < (max_length or 2):
        raise NoFeasiblePlan(
            f"the KV cache may take {cache_budget_bytes / 2**30:.2f} GiB, which is {most_pages * page_tokens} tokens "
            f"of {page_bytes_per_token} bytes; engine.max_length needs {max_length or 2}. Lower engine.max_length"
        )
    blocks = -(-longest // page_tokens)
    wanted = -(-slots // parts.of_slots) * -(-blocks // parts.of_sequence)
    options = DecodeOptions(
        slots=slots,
        max_length=longest,
        pages=min(wanted, most_pages) + 1,
        page_tokens=page_tokens,
        chunk_steps=16 if cpu else CHUNK_STEPS,
        prefill_tokens=prefill_tokens or (256 if cpu else 8192),
        attention="loop" if cpu else "contiguous",
        kv_dtype=kv_dtype,
        parts=parts,
    )
    cache_bytes = options.pages_in_part * options.positions_in_page * page_bytes_per_token
    return options if cache_bytes <= cache_budget_bytes else replace(options, attention="paged")


def _up_to(size: int, multiple: int) -> int:
    return -(-size // multiple) * multiple
