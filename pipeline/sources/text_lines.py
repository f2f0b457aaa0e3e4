"""Plain text: every line that is not blank is a row with the one column `text`."""

from __future__ import annotations

from collections.abc import Collection, Iterator

import pyarrow as pa

from pipeline.sources.base import Format, Parsed, WorkItem
from pipeline.sources.lines import LINE_LIMIT_BYTES, not_utf8, plan_lines, read_lines


def _read(item: WorkItem, columns: Collection[str] | None) -> Iterator[Parsed]:
    for line in read_lines(item.source, item.start, item.stop):
        if line is None:
            yield None, f"line over {LINE_LIMIT_BYTES >> 20} MiB"
            continue
        try:
            yield {"text": line.removesuffix(b"\r").decode()}, None
        except UnicodeDecodeError as e:
            yield None, not_utf8(e)


FORMAT = Format(
    suffixes=(".txt", ".text", ".txt.gz", ".text.gz"),
    plan=plan_lines,
    read=_read,
    columns=lambda url: {"text": pa.string()},
)
