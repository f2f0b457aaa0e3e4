"""Files of one format, named by a path, a directory or a glob, as one input."""

from __future__ import annotations

import logging
import posixpath
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import count, takewhile
from typing import TYPE_CHECKING, TypeVar

from fsspec.core import strip_protocol

from pipeline import storage
from pipeline.errors import EmptyInput, InputError
from pipeline.sources.base import Format, Span, WorkItem

if TYPE_CHECKING:
    import pyarrow as pa

_T = TypeVar("_T")
_log = logging.getLogger(__name__)
_FILES_AT_ONCE = 16
_MANY_SHARDS_OF_GZIP = 32


class FileSource:
    """All files that a pattern matches; all of them must have the same columns."""

    def __init__(self, pattern: str, urls: list[str], format_name: str, file_format: Format) -> None:
        self._pattern = pattern
        self._urls = urls
        self._format_name = format_name
        self._format = file_format

    def only(self, urls: Collection[str]) -> FileSource:
        """Some of its files; their rows are the same rows."""
        return FileSource(self._pattern, [url for url in self._urls if url in urls], self._format_name, self._format)

    def files(self) -> list[storage.FileFacts]:
        return list(_map_concurrently(storage.stat, self._urls))

    def work_items(self, shard_rows: int) -> Iterator[WorkItem]:
        shards = count()
        expected = self.columns()
        plans = _map_concurrently(lambda url: self._plan_file(url, shard_rows), self._urls)
        for url, (columns, spans) in zip(self._urls, plans, strict=True):
            self._check_columns(url, columns, expected)
            for span in spans:
                yield WorkItem(
                    shard=next(shards),
                    source=url,
                    format=self._format_name,
                    source_file=self._relative(url),
                    first_row=span.first_row,
                    rows=span.rows,
                    start=span.start,
                    stop=span.stop,
                )
            if url.endswith(".gz") and len(spans) > _MANY_SHARDS_OF_GZIP:
                _log.warning(
                    "%s: each of its %d shards decompresses it from the beginning; uncompressed, or as several"
                    " files, it is read much faster",
                    url,
                    len(spans),
                )
        if next(shards) == 0:
            raise EmptyInput(f"{self._pattern} holds no rows (files: {len(self._urls)}, all of them empty)")

    def columns(self) -> dict[str, pa.DataType] | None:
        """What the first file that declares columns declares."""
        return next((found for found in map(self._format.columns, self._urls) if found is not None), None)

    def _plan_file(self, url: str, shard_rows: int) -> tuple[dict[str, pa.DataType] | None, list[Span]]:
        return self._format.columns(url), list(self._format.plan(url, shard_rows))

    def _check_columns(
        self, url: str, found: dict[str, pa.DataType] | None, expected: dict[str, pa.DataType] | None
    ) -> None:
        if found is None or expected is None or found == expected:
            return
        name = min(name for name in {*found, *expected} if found.get(name) != expected.get(name))
        raise InputError(
            f"the files of {self._pattern} differ in the column {name!r}: {expected.get(name, 'missing')} at"
            f" first, {found.get(name, 'missing')} in {url}; write them alike, or run them as separate jobs"
        )

    def _relative(self, url: str) -> str:
        """The name of a file below the part of the pattern that is spelled out."""
        if [strip_protocol(self._pattern)] == [strip_protocol(file) for file in self._urls]:
            return posixpath.basename(url)
        root = "/".join(takewhile(lambda step: not _is_glob(step), self._pattern.split("/")))
        return posixpath.relpath(strip_protocol(url), strip_protocol(root or "."))


def names_directory(pattern: str, urls: list[str]) -> bool:
    """Whether a pattern stands for all files below a directory."""
    return not _is_glob(pattern) and [strip_protocol(url) for url in urls] != [strip_protocol(pattern)]


def _is_glob(text: str) -> bool:
    return any(character in text for character in "*?[")


def _map_concurrently(function: Callable[[str], _T], urls: list[str]) -> Iterator[_T]:
    """Results in order; an error drops what has not begun."""
    pool = ThreadPoolExecutor(_FILES_AT_ONCE)
    try:
        yield from pool.map(function, urls)
    finally:
        pool.shutdown(cancel_futures=True)
