"""Lengths, finish reasons and scores of an output, from a bounded number of its rows and of their columns.

Parts are read by column and by row group, so memory is that of the narrow columns of one row group, whatever the size
of the output. Above `limit` rows a sample is taken: row groups at even distances over all parts. It is no random
sample of rows, but one that sees every stretch of the input. Counts of rows, failures and tokens never come from
here: those of the manifest are exact.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.errors import InputError, PenstockError
from pipeline.storage import join, open_input
from schemas.manifest import ShardEntry

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

SAMPLED_ROWS = 200_000
MOST_PARTS = 400
"""Files opened for a sample; each costs a round trip in an object store."""
EXAMPLES_PER_REASON = 3
EXAMPLE_CHARS = 500
CATEGORIES = 30
"""Different finish reasons, and choices, that are counted by name."""

_UNREADABLE = (PenstockError, OSError, ValueError, TypeError, LookupError, NotImplementedError)
"""What Arrow raises for a damaged file, and what a file that is not ours leads to."""

_LENGTHS = ("sample_index", "status", "prompt_token_count")
_GENERATED = ("completion_token_count", "finish_reason", "cumulative_logprob")
_SCORED = ("token_count", "logprob", "logprob_per_token", "best_index", "perplexity")
_FAILED = ("status", "error", "record_id", "source_file", "source_row")


@dataclass
class Sample:
    """What the rows that were read hold. Rates are natural logarithms, lengths are tokens."""

    rows: int = 0
    of_rows: int = 0
    prompt_tokens: np.ndarray = field(default_factory=lambda: np.empty(0))
    """Of records that got a prompt."""
    completion_tokens: np.ndarray = field(default_factory=lambda: np.empty(0))
    finish_reasons: Counter[str] = field(default_factory=Counter)
    logprob_per_token: np.ndarray = field(default_factory=lambda: np.empty(0))
    """Of a generation, of the best continuation, or of a whole text."""
    margin: np.ndarray = field(default_factory=lambda: np.empty(0))
    """By how much the best continuation leads the second."""
    perplexity: np.ndarray = field(default_factory=lambda: np.empty(0))
    best_index: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)
    """Parts that could not be read, and why."""

    @property
    def is_whole(self) -> bool:
        return self.rows >= self.of_rows


@dataclass(frozen=True)
class Example:
    """A failed row, without its prompt: what a report shows may go to more people than the data."""

    record_id: str
    place: str
    error: str


def take_sample(output: str, entries: Sequence[ShardEntry], limit: int = SAMPLED_ROWS) -> Sample:
    """Reads at most about `limit` rows, spread evenly over the parts."""
    sample = Sample(of_rows=sum(entry.rows for entry in entries))
    parts = _evenly([entry for entry in entries if entry.rows], MOST_PARTS)
    share = limit / max(1, sum(entry.rows for entry in parts))
    columns: dict[str, list[np.ndarray]] = {}
    for entry in parts:
        try:
            for batch in _batches(join(output, entry.file), (*_LENGTHS, *_GENERATED, *_SCORED), share):
                sample.rows += batch.num_rows
                _add(sample, columns, batch)
        except _UNREADABLE as error:
            sample.problems.append(f"{entry.file} cannot be read: {str(error)[:EXAMPLE_CHARS]}")
    for name, arrays in columns.items():
        setattr(sample, name, np.concatenate(arrays))
    return sample


def failure_examples(output: str, entries: Sequence[ShardEntry]) -> dict[str, list[Example]]:
    """A few failed rows of each reason; reads no more parts than that takes."""
    wanted = {reason for entry in entries for reason in entry.failed_reasons} - {"other"}
    found: dict[str, list[Example]] = {}
    for entry in _evenly([entry for entry in entries if entry.failed], MOST_PARTS):
        missing = {reason for reason in wanted if len(found.get(reason, ())) < EXAMPLES_PER_REASON}
        if not missing:
            break
        if not missing & entry.failed_reasons.keys():
            continue
        try:
            for row in _failed(join(output, entry.file)):
                reason = str(row["error"]).split(":", 1)[0]
                examples = found.setdefault(reason, []) if reason in wanted else found.get(reason, [])
                if reason in wanted and len(examples) < EXAMPLES_PER_REASON:
                    place = f"{row['source_file']}, row {row['source_row']}"
                    examples.append(Example(_cut(row["record_id"]), _cut(place), _cut(row["error"])))
        except _UNREADABLE:
            continue  # take_sample has said so
    return {reason: examples for reason, examples in found.items() if examples}


def _add(sample: Sample, columns: dict[str, list[np.ndarray]], batch: pa.Table) -> None:
    import pyarrow.compute as pc

    def keep(name: str, values: Any) -> None:
        array = np.asarray(values, dtype=np.float64)
        columns.setdefault(name, []).append(array[np.isfinite(array)])

    first = batch.filter(pc.field("sample_index") == 0)
    keep("prompt_tokens", first["prompt_token_count"].drop_null())
    ok = batch.filter(pc.field("status") == "ok")
    if "finish_reason" in ok.column_names:
        tokens = ok["completion_token_count"].fill_null(0).to_numpy()
        keep("completion_tokens", tokens)
        with np.errstate(divide="ignore", invalid="ignore"):
            keep("logprob_per_token", ok["cumulative_logprob"].to_numpy() / tokens)
        _count(sample.finish_reasons, ok["finish_reason"])
    if "best_index" in ok.column_names:
        keep("perplexity", ok["perplexity"].drop_null())
        _count(sample.best_index, ok["best_index"].drop_null())
        keep("logprob_per_token", _best(ok))
        if sample.best_index:
            keep("margin", _margins(ok["logprob"].to_pylist()))


def _best(ok: pa.Table) -> list[float]:
    """Of the best continuation, or of the one text."""
    rows = zip(ok["logprob_per_token"].to_pylist(), ok["best_index"].to_pylist(), strict=True)
    return [values[best or 0] if values else math.nan for values, best in rows]


def _margins(rows: Sequence[Sequence[float]]) -> list[float]:
    ranked = (sorted(row)[-2:] for row in rows if row is not None and len(row) > 1)
    return [best - second for second, best in ranked]


def _count(counts: Counter[str], values: pa.ChunkedArray) -> None:
    for pair in values.value_counts().to_pylist():
        name = _cut(pair["values"], 40) if pair["values"] is not None else "none"
        counts[name if name in counts or len(counts) < CATEGORIES else "other"] += pair["counts"]


def _batches(url: str, columns: Sequence[str], share: float) -> Iterator[pa.Table]:
    """Row groups of a part, the wanted columns of it that there are: about `share` of its rows, evenly spread."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    with open_input(url) as file:
        parquet = pq.ParquetFile(file)
        present = [name for name in columns if name in parquet.schema_arrow.names]
        if missing := [name for name in _LENGTHS if name not in present]:
            raise InputError(f"it has no column {', '.join(missing)}")
        for group, rows in _chosen_groups(parquet, share):
            taken = 0
            for batch in parquet.iter_batches(batch_size=8192, row_groups=[group], columns=present):
                batch = batch.slice(0, rows - taken)
                taken += batch.num_rows
                yield pa.Table.from_batches([batch])
                if taken >= rows:
                    break


def _chosen_groups(parquet: pq.ParquetFile, share: float) -> Iterator[tuple[int, int]]:
    """Row groups to read, and how many rows of each from its start."""
    sizes = [parquet.metadata.row_group(group).num_rows for group in range(parquet.metadata.num_row_groups)]
    if share >= 1:
        yield from enumerate(sizes)
        return
    quota = math.ceil(share * sum(sizes))
    for group in _evenly(range(len(sizes)), math.ceil(share * len(sizes)) + 1):
        if quota <= 0:
            return
        yield group, min(quota, sizes[group])
        quota -= sizes[group]


def _failed(url: str) -> Iterator[dict[str, Any]]:
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    with open_input(url) as file:
        for batch in pq.ParquetFile(file).iter_batches(batch_size=1024, columns=list(_FAILED)):
            yield from batch.filter(pc.field("status") == "failed").to_pylist()


def _evenly(items: Sequence[Any], most: int) -> Sequence[Any]:
    """At most `most` of them, at even distances."""
    if len(items) <= most:
        return items
    return [items[i * len(items) // most] for i in range(most)]


def _cut(value: object, chars: int = EXAMPLE_CHARS) -> str:
    text = str(value)
    return text if len(text) <= chars else text[:chars] + "…"
