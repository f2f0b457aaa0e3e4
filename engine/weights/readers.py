"""Threads that read: a remote store answers many requests at a time, and a local disk is read while numbers are cast.

Work is done in any order and its results are taken in the order it was handed in, so what is seen of it, errors too,
does not depend on which thread was the fastest.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any, TypeVar

from engine.families.documents import File, Open

_FILES_EACH = 2  # a tensor's, and that of the copy it is compared with

T = TypeVar("T")


class Readers:
    """A context manager: leaving it stops what is under way and closes every file."""

    def __init__(self, open: Open, count: int) -> None:
        self._open = open
        self._threads = ThreadPoolExecutor(count, "penstock-reader")
        self._of_thread = threading.local()
        self._all: list[dict[str, File]] = []
        self._stopped = False

    def submit(self, work: Callable[..., T], *args: Any) -> Future[T]:
        """Calls `work(readers, *args)` on one of the threads."""
        return self._threads.submit(work, self, *args)

    def file(self, path: str) -> File:
        """The file as this thread has it; it stays open for the next time."""
        if self._stopped:
            raise CancelledError  # nobody waits for this any more
        if not hasattr(self._of_thread, "files"):
            self._of_thread.files = {}
            self._all.append(self._of_thread.files)
        files: dict[str, File] = self._of_thread.files
        files[path] = files.pop(path) if path in files else self._open(path)  # the last one used is the last
        if len(files) > _FILES_EACH:
            files.pop(next(iter(files))).close()
        return files[path]

    def __enter__(self) -> Readers:
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped = True
        self._threads.shutdown(cancel_futures=True)
        with ExitStack() as closing:  # all, even if one fails
            for files in self._all:
                for file in files.values():
                    closing.callback(file.close)
