"""How a run is shaped: slots, pages, buckets and chunk lengths. They bear on speed and memory, never on results."""

from __future__ import annotations

from dataclasses import dataclass

from engine.errors import NoFeasiblePlan

MIN_ROWS = 8
"""Programs have at least this many rows: below it, CPU matrix products may round a row differently."""

_SMALLEST_BUCKET = 32


@dataclass(frozen=True)
class DecodeOptions:
    """The shape of every program the engine runs."""

    slots: int
    """Samples decoded at the same time."""
    max_length: int
    """Tokens of the longest request, prompt and answer together."""
    pages: int
    """Pages in the cache, the null page included."""
    page_tokens: int
    chunk_steps: int
    """Most decode steps in one call of the program."""
    prefill_tokens: int
    """Tokens one prefill or score program holds, where a single row does not hold more."""
    loop_over_slots: bool
    """Attention and sampling walk the slots one by one (CPU) or take them together; see paged_attention and choose."""

    @property
    def slot_rows(self) -> int:
        """Rows of the decode program; those beyond `slots` stay empty."""
        return max(self.slots, MIN_ROWS)

    @property
    def blocks_per_slot(self) -> int:
        return -(-self.max_length // self.page_tokens)

    @property
    def buckets(self) -> tuple[int, ...]:
        """Lengths that prompts are padded to: powers of two, with a step between them from two pages up."""
        lengths, length = [], min(_SMALLEST_BUCKET, self.page_tokens)
        while length < self.max_length:
            lengths.append(length)
            if length % (2 * self.page_tokens) == 0 and length * 3 // 2 < self.max_length:
                lengths.append(length * 3 // 2)
            length *= 2
        lengths.append(-(-self.max_length // self.page_tokens) * self.page_tokens)
        return tuple(sorted(set(lengths)))

    def bucket(self, tokens: int) -> int:
        """The shortest bucket that holds `tokens`."""
        return next(length for length in self.buckets if length >= tokens)

    def rows(self, bucket: int) -> int:
        """Rows of the prefill and score programs of this bucket."""
        return max(1, self.prefill_tokens // bucket)


def choose_options(
    *,
    platform: str,
    context_tokens: int,
    page_bytes_per_token: int,
    cache_budget_bytes: int,
    slots: int | None = None,
    max_length: int | None = None,
) -> DecodeOptions:
    """Options for a backend; `slots` and `max_length` are honoured if given and chosen otherwise.

    The cache holds what all slots could need at the longest length, or `cache_budget_bytes` if that is less: slots then
    wait for pages. Raises NoFeasiblePlan when what was asked for cannot be.
    """
    cpu = platform == "cpu"
    page_tokens = 64 if cpu else 128
    if slots is None:
        slots = 64 if cpu else 256
    if slots < 1:
        raise NoFeasiblePlan(f"engine.slots must be at least 1; got {slots}")
    if max_length is not None and not 2 <= max_length <= context_tokens:
        raise NoFeasiblePlan(
            f"engine.max_length must be between 2 and the model's context of {context_tokens} tokens; got {max_length}"
        )
    most_pages = cache_budget_bytes // (page_bytes_per_token * page_tokens) - 2  # the null page and one to spare
    longest = min(max_length or context_tokens, most_pages * page_tokens)
    if longest < (max_length or 2):
        raise NoFeasiblePlan(
            f"the KV cache may take {cache_budget_bytes / 2**30:.2f} GiB, which is {most_pages * page_tokens} tokens "
            f"of {page_bytes_per_token} bytes; engine.max_length needs {max_length or 2}. Lower engine.max_length"
        )
    wanted = slots * -(-longest // page_tokens)
    return DecodeOptions(
        slots=slots,
        max_length=longest,
        pages=min(wanted, most_pages) + 2,
        page_tokens=page_tokens,
        chunk_steps=16 if cpu else 32,
        prefill_tokens=256 if cpu else 8192,
        loop_over_slots=cpu,
    )
