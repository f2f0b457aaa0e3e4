"""Stores that are watched, or slow: an `open` for tests."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

from engine.families import open_local


class CountingOpen:
    """Counts by path how often a file was opened and closed, and the requests and bytes it was read with."""

    def __init__(self, open: Callable[[str], Any] = open_local, seconds: float = 0.0) -> None:
        self._open, self._seconds, self._lock = open, seconds, threading.Lock()
        self.opened: Counter[str] = Counter()
        self.closed: Counter[str] = Counter()
        self.requests: Counter[str] = Counter()
        self.read_bytes: Counter[str] = Counter()
        self.reading = self.most_reading = 0

    def __call__(self, path: str) -> Any:
        file = self._open(path)
        with self._lock:
            self.opened[path] += 1
        return _Counted(file, path, self)

    def read(self, file: Any, path: str, size: int) -> bytes:
        with self._lock:
            self.reading += 1
            self.most_reading = max(self.reading, self.most_reading)
        time.sleep(self._seconds)
        data = file.read(size)
        with self._lock:
            self.reading -= 1
            self.requests[path] += 1
            self.read_bytes[path] += len(data)
        return data


class _Counted:
    def __init__(self, file: Any, path: str, store: CountingOpen) -> None:
        self._file, self._path, self._store = file, path, store

    def read(self, size: int = -1, /) -> bytes:
        return self._store.read(self._file, self._path, size)

    def seek(self, offset: int, whence: int = 0, /) -> int:
        return self._file.seek(offset, whence)

    def close(self) -> None:
        with self._store._lock:
            self._store.closed[self._path] += 1
        self._file.close()

    def __enter__(self) -> _Counted:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
