"""Plan an input, send its work items over JSON as a runner would, and read them back, checking the numbers."""

from __future__ import annotations

import json
import uuid
from collections.abc import Collection
from itertools import groupby

import fsspec

from pipeline.sources import Row, Source, WorkItem, open_source, read_rows


def plan(shard_rows: int, **where) -> list[WorkItem]:
    """The work items of an input, which must count up without gaps."""
    return checked_plan(open_source(**where), shard_rows)


def checked_plan(source: Source, shard_rows: int) -> list[WorkItem]:
    items = list(source.work_items(shard_rows))
    assert [item.shard for item in items] == list(range(len(items)))
    assert all(0 < item.rows <= shard_rows for item in items)
    for _, of_file in groupby(items, key=lambda item: item.source):
        first, *rest = of_file
        for item in rest:
            assert first.first_row + first.rows == item.first_row
            first = item
    return items


def read(items: list[WorkItem], columns: Collection[str] | None = None) -> list[Row]:
    """All rows of all items, each of which must give what it promised."""
    found = []
    for item in items:
        carried = WorkItem.from_json(json.loads(json.dumps(item.to_json())))
        assert carried == item
        rows = list(read_rows(carried, columns))
        assert [row.row for row in rows] == list(range(item.first_row, item.first_row + item.rows))
        assert all((row.values is None) == bool(row.error) for row in rows)
        found += rows
    return found


def values_and_errors(rows: list[Row]) -> list[tuple]:
    return [(row.values, row.error) for row in rows]


def in_memory(data: bytes, suffix: str) -> str:
    """A new file in memory://"""
    url = f"memory:///{uuid.uuid4().hex}{suffix}"
    fsspec.filesystem("memory").pipe_file(url, data)
    return url
