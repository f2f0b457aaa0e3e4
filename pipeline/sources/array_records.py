"""ArrayRecord files: ranges of records through the array_record package, which reads local files alone.

A file in an object store is first copied to the temporary directory, once for every shard that is read from
it: it is worth preparing large datasets as many files.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from pipeline import storage
from pipeline.errors import InputError
from pipeline.sources.base import changed_since_plan

_READ_AT_ONCE = 64
_BOUNDED_MEMORY = "readahead_buffer_size:0,max_parallelism:0"


def read_array_records(url: str, start: int, stop: int) -> Iterator[bytes | None]:
    """Records `start` to `stop` of a file; None for one whose data is damaged."""
    from array_record.python.array_record_module import ArrayRecordReader

    with _local_copy(url) as path:
        reader = ArrayRecordReader(path, _BOUNDED_MEMORY)
        if not reader.ok():
            raise InputError(f"{url} is not a readable ArrayRecord file; prepare it again")
        if (found := reader.num_records()) < stop:
            raise changed_since_plan(url, f"it has {found} records instead of {stop} or more")
        try:
            for first in range(start, stop, _READ_AT_ONCE):
                numbers = range(first, min(first + _READ_AT_ONCE, stop))
                try:
                    records = reader.read(numbers.start, numbers.stop)
                except RuntimeError:  # something in this range does not match its hash
                    records = [_read_one(reader, number) for number in numbers]
                yield from records
        finally:
            reader.close()


def _read_one(reader: Any, number: int) -> bytes | None:
    try:
        return reader.read([number])[0]
    except RuntimeError:
        return None


@contextmanager
def _local_copy(url: str) -> Iterator[str]:
    if "://" not in url:
        storage.stat(url)  # says so when it is gone, which the reader does not
        yield url
        return
    with tempfile.NamedTemporaryFile(prefix="penstock-") as copy:
        with storage.open_input(url) as stream:
            shutil.copyfileobj(stream, copy)
        copy.flush()
        yield copy.name
