"""The slots on the host: what decode is handed, and gets back, for every slot. The only place that knows a length."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import jax
import numpy as np

from engine.cache.pages import NULL_PAGE
from engine.compilation.options import MAX_STOP_TOKEN_IDS, DecodeOptions
from engine.runtime.group import Sample
from engine.steps.decode import LENGTH, RUNNING, Slots, empty_slots


class SlotTable:
    """Numpy arrays with a row a slot, written when a sample starts and read back after every chunk."""

    def __init__(self, options: DecodeOptions, vocab: int) -> None:
        self._vocab = vocab
        self._page_parts = options.parts.of_sequence
        parts = self._page_parts if self._page_parts > 1 else options.parts.of_slots
        rows = options.slot_rows if self._page_parts > 1 else options.slot_rows // parts
        self.pages = np.full((parts, rows, options.pages_of(options.max_length)), NULL_PAGE, np.int32)
        """[parts of the cache, rows of a part, blocks]: of a slot in its part, or every n-th block in each."""
        self.state = empty_slots(options.slot_rows, MAX_STOP_TOKEN_IDS)

    def fill(self, sample: Sample) -> None:
        """Puts a sample, whose prompt is in its pages, into its slot."""
        request, at = sample.group.request, sample.slot
        sampling, slots, rules = request.sampling, self.state, self.state.rules
        put_pages(self.pages, at, sample.pages, self._page_parts)
        slots.token[at] = request.prompt[-1]
        slots.length[at] = sample.group.prefilled
        slots.generated[at] = 0
        slots.finish[at] = RUNNING
        slots.max_tokens[at] = sample.group.max_tokens
        slots.min_tokens[at] = sampling.min_tokens
        slots.stop_tokens[at] = -1
        slots.stop_tokens[at, : len(sampling.stop_token_ids)] = sampling.stop_token_ids
        slots.ignore_eos[at] = sampling.ignore_eos
        slots.top_logprobs[at] = sampling.logprobs > 0
        rules.temperature[at] = sampling.temperature
        rules.top_k[at] = min(sampling.top_k, self._vocab)
        rules.top_p[at] = sampling.top_p
        rules.min_p[at] = sampling.min_p
        rules.key[at] = (*_words(request.seed), *_words(request.record), sample.index)

    def empty(self, slot: int) -> None:
        """Nothing runs in this slot any more."""
        self.state.finish[slot] = LENGTH

    def update(self, after: Slots) -> np.ndarray:
        """Takes over what a chunk changed; returns how many tokens each slot generated."""
        before = self.state.generated
        token, length, generated, finish = (
            np.array(x) for x in jax.device_get((after.token, after.length, after.generated, after.finish))
        )
        self.state = replace(self.state, token=token, length=length, generated=generated, finish=finish)
        return generated - before


def put_pages(table: np.ndarray, row: int, pages: Sequence[int], page_parts: int) -> None:
    """Writes a sequence's pages into a table [parts, rows of a part, blocks], the null page where it has none.

    `row` counts through the parts; where pages go round `page_parts` parts, each part has every row.
    """
    if page_parts == 1:
        line = table.reshape(-1, table.shape[-1])[row]
        line[:] = NULL_PAGE
        line[: len(pages)] = pages
        return
    for part in range(page_parts):
        some = pages[part::page_parts]
        table[part, row] = NULL_PAGE
        table[part, row, : len(some)] = some


def _words(number: int) -> tuple[int, int]:
    """A 64-bit number, taken modulo 2**64, as two 32-bit words."""
    return (number >> 32) & 0xFFFFFFFF, number & 0xFFFFFFFF
