"""The KV cache on the host: which pages are free, and how many samples hold each of the others."""

from __future__ import annotations

from collections.abc import Sequence


class PagePool:
    """Pages with reference counts."""

    def __init__(self, pages: int) -> None:
        self._free = list(range(pages - 1, -1, -1))
        self._holders = [0] * pages

    @property
    def free(self) -> int:
        return len(self._free)

    def allocate(self, count: int) -> list[int]:
        """`count` pages with one holder each. The caller has checked that there are as many."""
        assert count <= len(self._free), f"asked for {count} pages, {len(self._free)} are free"
        taken = [self._free.pop() for _ in range(count)]
        for page in taken:
            self._holders[page] = 1
        return taken

    def retain(self, pages: Sequence[int]) -> None:
        """One more holder for each page."""
        for page in pages:
            assert self._holders[page] > 0, f"page {page} is free and cannot be shared"
            self._holders[page] += 1

    def release(self, pages: Sequence[int]) -> None:
        """One holder less; a page without holders is free again."""
        for page in pages:
            assert self._holders[page] > 0, f"page {page} was released more often than it was held"
            self._holders[page] -= 1
            if self._holders[page] == 0:
                self._free.append(page)
