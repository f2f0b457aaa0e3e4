"""How a column is declared, and the columns that every result table has.

A column carries its description in the field's metadata, so a Parquet file explains itself.
"""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa


def column(name: str, dtype: pa.DataType, description: str, *, required: bool = False) -> pa.Field:
    """A described column; a required one can never be null."""
    return pa.field(name, dtype, nullable=not required, metadata={b"description": description.encode()})


IDENTITY = (
    column("record_id", pa.string(), "The id in the input, or source_file:source_row.", required=True),
    column("sample_index", pa.int32(), "Which of the record's n samples this is, from 0.", required=True),
    column("source_file", pa.string(), "The input file, relative to the input's root.", required=True),
    column("source_row", pa.int64(), "The row in source_file, from 0.", required=True),
    column("status", pa.string(), "ok, or failed: no result, and `error` says why.", required=True),
    column("error", pa.string(), "Why the record failed, as `kind: reason`; null when ok."),
    column("prompt", pa.string(), "The rendered prompt; null unless the job includes prompts."),
    column("prompt_token_count", pa.int32(), "Tokens of the prompt."),
)

PROVENANCE = (
    column("seed", pa.int64(), "The job's seed; with record id and sample index it fixes all randomness."),
    column("model_fingerprint", pa.string(), "Which weights and config were used.", required=True),
    column("job_fingerprint", pa.string(), "Which job, input, model and settings.", required=True),
)


def table(name: str, version: int, columns: Sequence[pa.Field], kept: Sequence[pa.Field]) -> pa.Schema:
    """The schema of a result table: our columns, then the kept input columns, every name once."""
    taken = {field.name for field in columns}
    for field in kept:
        if field.name in taken:
            raise ValueError(f"cannot keep column {field.name!r}: the {name} table already has one")
        taken.add(field.name)
    return pa.schema([*columns, *kept], metadata={b"penstock.table": f"{name} {version}".encode()})
