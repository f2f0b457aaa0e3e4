"""The forms in which decode keeps keys and values and attends to them."""

from __future__ import annotations

from typing import Literal

Attention = Literal["loop", "paged", "contiguous"]
"""
loop        pages, handed out as needed and shared; slot by slot, each over its own pages only
paged       the same pages; all slots together, page by page
contiguous  one page a slot, as long as the longest sequence; all slots together, in one pass
"""
