"""Which pages of the cache a sample gets, and how its prompt comes into them. Plain Python.

The cache is in parts, each with pages of its own. Either a part holds whole sequences, those of its slots, or every
part holds every n-th block of all sequences; a list of a sequence's pages goes round the parts then.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

from engine.cache.page_table import PagePool
from engine.compilation.options import DecodeOptions
from engine.runtime.group import Group, Sample


@dataclass(frozen=True)
class Start:
    """What a sample starts with."""

    pages: list[int]
    prefill_pages: list[int] = field(default_factory=list)
    """Where its prompt must be prefilled, if it must."""
    copies: list[tuple[int, int, int]] = field(default_factory=list)
    """(part of the cache, source page, target page), to be made after prefills."""


@runtime_checkable
class SlotMemory(Protocol):
    def fits(self, group: Group, part: int) -> bool:
        """Whether the group's next sample could start in this part of the slots, if one is free."""
        ...

    def start(self, group: Group, slot: int) -> Start:
        """Gives the group's next sample its pages; `group.started` does not count it yet."""
        ...

    def finish(self, sample: Sample) -> None: ...

    def complete(self, group: Group) -> None:
        """No further sample of this group will start."""
        ...


def slot_memory(options: DecodeOptions) -> SlotMemory:
    return OwnPages(options) if options.attention == "contiguous" else SharedPages(options)


class OwnPages:
    """Of a contiguous cache: a page a slot in each part. Nothing is shared, and what is free is what slots are free.

    A prompt is prefilled for a first sample; others copy it from one that still runs, whose prompt stands unchanged.
    """

    def __init__(self, options: DecodeOptions) -> None:
        self._rows, self._page_parts = options.slot_rows // options.parts.of_slots, options.parts.of_sequence
        self._running: dict[Group, list[int]] = {}  # the pages of its samples

    def fits(self, group: Group, part: int) -> bool:
        return True

    def start(self, group: Group, slot: int) -> Start:
        page, running = slot % self._rows, self._running.setdefault(group, [])
        running.append(page)
        pages = [page] * self._page_parts
        if not group.prefilled:
            return Start(pages)
        if len(running) == 1:
            return Start(pages, prefill_pages=pages)
        parts = [group.part] if self._page_parts == 1 else range(self._page_parts)
        return Start(pages, copies=[(part, running[0], page) for part in parts])

    def finish(self, sample: Sample) -> None:
        running = self._running[sample.group]
        running.remove(sample.pages[0])
        if not running:
            del self._running[sample.group]

    def complete(self, group: Group) -> None:
        pass


class SharedPages:
    """Of a paged cache: a sample takes all the pages it can ever need before it starts.

    So nothing that has started is ever stopped for lack of memory and computed twice. Samples of one prompt share the
    pages that the prompt fills, and copy the one it fills in part.
    """

    def __init__(self, options: DecodeOptions) -> None:
        self._page_tokens, self._page_parts = options.page_tokens, options.parts.of_sequence
        self.pools = [PagePool(options.pages) for _ in range(options.parts.of_slots * self._page_parts)]

    def fits(self, group: Group, part: int) -> bool:
        blocks, parts = self._own_blocks(group), self._page_parts
        return all(
            len(range(first, blocks.stop, parts)) <= self._pool(part, first).free
            for first in range(blocks.start, min(blocks.start + parts, blocks.stop))
        )

    def start(self, group: Group, slot: int) -> Start:
        shared = self._shared_pages(group)
        own = [self._pool(group.part, block).allocate(1)[0] for block in self._own_blocks(group)]
        self._each(group.part, shared, PagePool.retain)
        if group.started == 0:
            group.prompt_pages = own[: self._blocks(group.prefilled)]
            self._each(group.part, group.prompt_pages, PagePool.retain)
            return Start(own, prefill_pages=group.prompt_pages)
        if len(group.prompt_pages) == len(shared):
            return Start(shared + own)
        return Start(shared + own, copies=[(self._pool_index(group.part, len(shared)), group.prompt_pages[-1], own[0])])

    def finish(self, sample: Sample) -> None:
        self._each(sample.group.part, sample.pages, PagePool.release)

    def complete(self, group: Group) -> None:
        self._each(group.part, group.prompt_pages, PagePool.release)
        group.prompt_pages = []

    def _blocks(self, positions: int) -> int:
        return -(-positions // self._page_tokens)

    def _shared_pages(self, group: Group) -> list[int]:
        """The pages the next sample can use as they are: those the prompt fills to the end."""
        return group.prompt_pages[: group.prefilled // self._page_tokens] if group.started else []

    def _own_blocks(self, group: Group) -> range:
        """The blocks for which the next sample needs pages of its own."""
        return range(len(self._shared_pages(group)), self._blocks(group.prefilled + group.max_tokens))

    def _pool(self, part: int, block: int) -> PagePool:
        """Where the pages for this block of a sequence come from."""
        return self.pools[self._pool_index(part, block)]

    def _pool_index(self, part: int, block: int) -> int:
        return part if self._page_parts == 1 else block % self._page_parts

    def _each(self, part: int, pages: Sequence[int], do: Callable[[PagePool, Sequence[int]], None]) -> None:
        """Retains or releases the pages of a sequence's blocks, from the first on."""
        for first in range(min(self._page_parts, len(pages))):
            do(self._pool(part, first), pages[first :: self._page_parts])
