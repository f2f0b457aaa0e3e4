"""Progress of work whose measure is rows that pass: a line after a while, nothing for short work."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import TextIO

FIRST_SECONDS, EVERY_SECONDS = 3.0, 10.0


@contextlib.contextmanager
def rows_passing(name: str, to: TextIO) -> Iterator[Callable[[int], None]]:
    """Gives a function to call with the number of rows that have just passed."""
    rows, started = 0, time.monotonic()
    due = started + FIRST_SECONDS

    def seen(more: int) -> None:
        nonlocal rows, due
        rows += more
        now = time.monotonic()
        if now >= due:
            print(f"{name}: {rows:,} rows, {rows / (now - started):,.0f} per second", file=to, flush=True)
            due = now + EVERY_SECONDS

    yield seen
