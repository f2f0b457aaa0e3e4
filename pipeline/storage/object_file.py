"""An object in a store as a seekable file: ranges of one and the same version, each exactly as long as asked for.

Drivers hand on what the network gave them; here the length of every answer is checked, so that half a body is
never taken for data, and the version is pinned (GCS: its generation, S3: its etag), so that a file which is
replaced while it is read is an error, and not a mixture of two.

What is read in one go is fetched in ever longer ranges, what is read here and there in short ones.
"""

from __future__ import annotations

import functools
import io
from collections.abc import Callable
from typing import Any, cast

import fsspec

from pipeline.errors import InputError
from pipeline.storage.refusals import Doing, ShortAnswer
from pipeline.storage.retrying import ask

SHORTEST_BYTES = 256 * 2**10
LONGEST_BYTES = 8 * 2**20
REQUEST_BYTES = 64 * 2**20
"""What is asked for in one request at most: a part that fails is all that is asked for again."""

Fetch = Callable[[int, int], bytes]


def open_object(fs: fsspec.AbstractFileSystem, url: str, path: str) -> ObjectFile:
    """FileNotFoundError where there is no such object."""
    size_bytes, fetch = ask(Doing("read", url), lambda: _pinned(fs, path))
    return ObjectFile(url, size_bytes, fetch)


def _pinned(fs: fsspec.AbstractFileSystem, path: str) -> tuple[int, Fetch]:
    """The size of an object as it is now, and what fetches ranges of just that version."""
    if "gs" in fs.protocol:
        gcs: Any = fs
        bucket, key, _ = gcs.split_path(path)
        if not key:
            raise FileNotFoundError(f"{path} is no file")
        facts = gcs.call(
            "GET", "b/{}/o/{}", bucket, key, json_out=True
        )  # info() also lists, which costs ten times more
        return int(facts["size"]), functools.partial(_generation, fs, path, facts["generation"])
    file: Any = fs.open(path, "rb", cache_type="none")  # by itself it asks for the etag that it found
    if file.details["type"] != "file":
        raise FileNotFoundError(f"{path} is no file")

    def fetch(start: int, stop: int) -> bytes:
        file.seek(start)
        return file.read(stop - start)

    return int(file.details["size"]), fetch


def _generation(fs: fsspec.AbstractFileSystem, path: str, generation: str, start: int, stop: int) -> bytes:
    return cast(bytes, fs.cat_file(path, start=start, end=stop, generation=generation))


class ObjectFile(io.BufferedIOBase):
    """For one thread. `fetch(start, stop)` gives a range of the object's bytes."""

    def __init__(self, url: str, size_bytes: int, fetch: Fetch) -> None:
        self._url = url
        self._size_bytes = size_bytes
        self._fetch = fetch
        self._at = 0
        self._held, self._held_from = b"", 0
        self._ahead_bytes = SHORTEST_BYTES

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size_bytes}[whence]
        if base + offset < 0:
            raise ValueError(f"a position before the beginning of {self._url}")
        self._at = base + offset
        return self._at

    def read1(self, size: int | None = -1, /) -> bytes:
        return self.read(size)

    def read(self, size: int | None = -1, /) -> bytes:
        if self.closed:
            raise ValueError(f"{self._url} is closed")
        stop = self._size_bytes if size is None or size < 0 else min(self._at + size, self._size_bytes)
        if stop <= self._at:
            return b""
        begin = self._at - self._held_from
        if begin >= 0 and stop <= self._held_from + len(self._held):
            data = self._held[begin : begin + stop - self._at]
        else:
            data = self._read_on(stop)
        self._at = stop
        return data

    def _read_on(self, stop: int) -> bytes:
        """What lies before `stop`, the beginning perhaps held already; what comes after it is held from now on."""
        held_to = self._held_from + len(self._held)
        goes_on = self._held_from <= self._at <= held_to
        first = self._held[self._at - self._held_from :] if goes_on else b""
        self._ahead_bytes = min(2 * self._ahead_bytes, LONGEST_BYTES) if goes_on and held_to else SHORTEST_BYTES
        begin = self._at + len(first)
        end = min(self._size_bytes, max(stop, begin + self._ahead_bytes))
        parts = [self._whole(at, min(at + REQUEST_BYTES, end)) for at in range(begin, end, REQUEST_BYTES)]
        fetched = parts[0] if len(parts) == 1 else b"".join(parts)
        data = first + fetched[: stop - begin]
        self._held, self._held_from = fetched[stop - begin :], stop
        return data

    def _whole(self, start: int, stop: int) -> bytes:
        def fetch() -> bytes:
            try:
                data = self._fetch(start, stop)
            except Exception as error:
                if isinstance(error, FileNotFoundError) or type(error).__name__ == "FileExpired":
                    raise InputError(f"{self._url} was replaced or removed while it was read; run again") from error
                raise
            if len(data) != stop - start:
                raise ShortAnswer(f"{len(data)} of the bytes {start} to {stop} came")
            return data

        return ask(Doing("read", self._url), fetch)
