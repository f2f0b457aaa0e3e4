"""What every source of rows speaks: work items out of a plan, rows out of a work item.

A WorkItem is the Beam element: a few numbers that say where the rows of one shard lie, never the rows
themselves. Its `rows` is exact, and reading it gives exactly that many Rows in order, so rows are conserved
from here to the output: what cannot be understood is a Row with a reason, and what is no longer there is an
error.

Start and stop are in the format's own unit: byte offsets (of the decompressed stream) for lines, row numbers
for Parquet and TFDS files.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import pyarrow as pa

    from pipeline.storage import FileFacts


@dataclass(frozen=True)
class WorkItem:
    """One shard of the input: a unit of work, of retry and of output."""

    shard: int
    source: str  # URL of the data file
    format: str  # jsonl | csv | text | parquet | tfds
    source_file: str  # its name in the output: relative to the input's root when it has one
    first_row: int  # number of the first row within the file, from 0
    rows: int
    start: int
    stop: int
    options: tuple[tuple[str, str], ...] = ()

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "options": dict(self.options)}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> WorkItem:
        names = {field.name for field in fields(cls)}
        if set(values) != names:
            raise ValueError(f"a work item has the fields {sorted(names)}, not {sorted(values)}")
        return cls(**{**values, "options": tuple(values["options"].items())})


@dataclass(frozen=True)
class Row:
    """One row of the input: its values, or why it has none (kind of fault first, then a colon and details)."""

    row: int  # number within the file, from 0
    values: dict[str, Any] | None
    error: str | None = None


class Source(Protocol):
    """An input as the driver sees it."""

    def files(self) -> list[FileFacts]:
        """The files that the rows come from, with what identifies their content."""
        ...

    def work_items(self, shard_rows: int) -> Iterator[WorkItem]:
        """Plan the input as shards of `shard_rows` rows; the last shard of a file has what is left."""
        ...

    def columns(self) -> dict[str, pa.DataType] | None:
        """Types of the columns where the format declares them, else None."""
        ...
