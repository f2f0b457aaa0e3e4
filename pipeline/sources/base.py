"""What every source of rows speaks: work items out of a plan, rows out of a work item.

A WorkItem is the Beam element: a few numbers that say where the rows of one shard lie, never the rows
themselves. Its `rows` is exact, and reading it gives exactly that many Rows in order, so rows are conserved
from here to the output: what cannot be understood is a Row with a reason, and what is no longer there is an
error.

Start and stop are in the format's own unit: byte offsets (of the decompressed stream) for lines, row numbers
for Parquet and TFDS files.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import TYPE_CHECKING, Any, Protocol

from pipeline.errors import InputError

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

    from pipeline.storage import FileFacts


_SELECTION = "only_rows"  # an option: how many rows the piece of the file has, a colon, and a bit for each, as hex


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

    def selecting(self, chosen: Sequence[bool]) -> WorkItem:
        """The same piece of the file with only some of its rows: `chosen` says which, one for each of them."""
        bits = sum(1 << i for i, is_chosen in enumerate(chosen) if is_chosen)
        options = (*self.options, (_SELECTION, f"{len(chosen)}:{bits:x}"))
        return replace(self, rows=sum(chosen), options=options)

    def row_numbers(self) -> Iterator[int]:
        """The numbers of its rows within the file, ascending."""
        for i, is_chosen in enumerate(self.selection):
            if is_chosen:
                yield self.first_row + i

    @property
    def selection(self) -> Sequence[bool]:
        """Which rows of its piece of the file it has, one for each that is there."""
        text = dict(self.options).get(_SELECTION)
        if text is None:
            return [True] * self.rows
        span, _, bits = text.partition(":")
        chosen = int(bits, 16)
        return [bool(chosen >> i & 1) for i in range(int(span))]

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
    """One row of the input: its values, or why it has none (the kind of fault, a colon, details)."""

    row: int  # number within the file, from 0
    values: dict[str, Any] | None
    error: str | None = None


class Source(Protocol):
    """An input as the driver sees it."""

    def files(self) -> list[FileFacts]:
        """The files that decide the rows, with what identifies their content."""
        ...

    def work_items(self, shard_rows: int) -> Iterator[WorkItem]:
        """Plan the input as shards of `shard_rows` rows; the last shard of a file has what is left."""
        ...

    def columns(self) -> dict[str, pa.DataType] | None:
        """Types of the columns where the format declares them, else None."""
        ...


Parsed = tuple[dict[str, Any] | None, str | None]  # values, or the reason why there are none


@dataclass(frozen=True)
class Span:
    """A piece of one file that becomes a shard."""

    first_row: int
    rows: int
    start: int
    stop: int


@dataclass(frozen=True)
class Format:
    """How one kind of file is planned and read."""

    suffixes: tuple[str, ...]
    plan: Callable[[str, int], Iterator[Span]]  # (url, shard_rows)
    read: Callable[[WorkItem, Collection[str] | None], Iterator[Parsed]]
    columns: Callable[[str], dict[str, pa.DataType] | None]  # of a file; None when it declares none


def spans_between(row_ends: Iterable[Sequence[int] | np.ndarray], start: int, shard_rows: int) -> Iterator[Span]:
    """Cut a file behind every `shard_rows`-th row, given the offsets just behind its rows in batches."""
    first_row = rows = 0
    stop = start
    for ends in row_ends:
        for end in ends[shard_rows - 1 - (rows - first_row) :: shard_rows]:
            yield Span(first_row, shard_rows, start, int(end))
            first_row, start = first_row + shard_rows, int(end)
        if len(ends):
            rows, stop = rows + len(ends), int(ends[-1])
    if rows > first_row:
        yield Span(first_row, rows - first_row, start, stop)


def changed_since_plan(url: str, finding: str) -> InputError:
    return InputError(
        f"{url} has changed since the work plan was made: {finding}; put the planned file back, or run the"
        " job with a new output path"
    )


def text_if_utf8(value: Any) -> Any:
    """Bytes as text where they are valid UTF-8, also inside lists and dicts; other bytes stay as they are."""
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError:
            return value
    if isinstance(value, list | tuple):
        return type(value)(map(text_if_utf8, value))
    if isinstance(value, dict):
        return {key: text_if_utf8(inner) for key, inner in value.items()}
    return value
