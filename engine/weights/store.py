"""What is known of where a checkpoint lies: how many readers it is read with, and how small the pieces may be."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

from engine.families.documents import Open

READERS = 8
SKIPPED_BYTES = 1 << 20
LOCAL_SKIPPED_BYTES = 16 << 10


@dataclass(frozen=True)
class Store:
    readers: int
    """Threads that read at the same time."""
    skipped_bytes: int
    """Numbers between two wanted parts of a row are read and thrown away unless they are this many bytes.

    A request to a remote store takes tens of milliseconds, in which it sends more than a megabyte. One to a local disk
    takes as long as reading some kilobytes.
    """


def survey(open: Open, path: str, readers: int | None = None) -> Store:
    """Looks at one file. `readers`, if given, is kept, unless only one can be had."""
    with open(path) as one, open(path) as other:
        one.seek(1)
        other.seek(0)
        if one.seek(0, os.SEEK_CUR) != 1:
            # One object for a file, handed out whenever it is opened, as fsspec's memory:// does: readers would move
            # each other's position.
            return Store(1, SKIPPED_BYTES)
        if _is_local(one):  # more readers than processors would only be in each other's way
            return Store(readers or min(READERS, os.cpu_count() or 1), LOCAL_SKIPPED_BYTES)
    return Store(readers or READERS, SKIPPED_BYTES)


def _is_local(file: Any) -> bool:
    try:
        return file.fileno() >= 0
    except (AttributeError, OSError):  # io.UnsupportedOperation is an OSError
        return False
