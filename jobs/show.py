"""Results as a table to read in a terminal: the first rows of an output, or its failed ones."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from jobs.spec import output_columns
from jobs.wording import printable
from pipeline.errors import JobError, OutputError
from pipeline.storage import join, list_names, open_input

if TYPE_CHECKING:
    import pyarrow as pa
    from rich.table import Table

LONGEST_CELL = 400  # characters; more is cut, and the Parquet file has it whole

_READ_FIRST = ("record_id", "sample_index", "prompt", "text", "finish_reason")
_READ_FIRST_SCORED = ("record_id", "prompt", "continuations", "logprob", "is_greedy", "best_index", "perplexity")
_READ_FIRST_FAILED = ("record_id", "source_file", "source_row", "error")


def show(output: str, *, limit: int = 10, columns: Sequence[str] = (), failed: bool = False) -> Table:
    """The first `limit` rows of an output, in the input's order: all of them, or those that failed."""
    from rich.table import Table
    from rich.text import Text

    parts = [name for name in list_names(output) if name.startswith("part-") and name.endswith(".parquet")]
    if not parts:
        raise OutputError(f"{output} holds no results yet: there is no part-*.parquet in it")
    shown = _shown_columns(_schema(join(output, parts[0])), columns, failed)
    table = Table(show_lines=True)
    for name in shown:
        table.add_column(Text(name))
    rows = (row for part in parts for row in _rows(join(output, part), shown, failed))
    for row in itertools.islice(rows, limit):
        table.add_row(*(Text(cell(row[name])) for name in shown))
    return table


def cell(value: Any) -> str:
    """A value on the screen."""
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list):
        return "[" + ", ".join(cell(item) for item in value[:20]) + (", …]" if len(value) > 20 else "]")
    text = "" if value is None else str(value)
    return printable(text if len(text) <= LONGEST_CELL else text[:LONGEST_CELL] + "…")


def _schema(part: str) -> pa.Schema:
    import pyarrow.parquet as pq

    with open_input(part) as file:
        return pq.read_schema(file)


def _shown_columns(schema: pa.Schema, asked: Sequence[str], failed: bool) -> list[str]:
    if missing := [name for name in asked if name not in schema.names]:
        raise JobError(f"there is no column {', '.join(missing)}; the output has {', '.join(schema.names)}")
    if asked:
        return list(asked)
    if failed:
        return list(_READ_FIRST_FAILED)
    is_score = schema.metadata[b"penstock.table"].startswith(b"score")
    ours = output_columns("score" if is_score else "generate")
    kept = [name for name in schema.names if name not in ours]
    return [*(_READ_FIRST_SCORED if is_score else _READ_FIRST), *kept]


def _rows(part: str, columns: Sequence[str], failed: bool) -> Iterator[dict[str, Any]]:
    import pyarrow.parquet as pq

    with open_input(part) as file:
        for batch in pq.ParquetFile(file).iter_batches(batch_size=64, columns=[*{*columns, "status"}]):
            for row in batch.to_pylist():
                if not failed or row["status"] == "failed":
                    yield row
