"""Results in the forms that other programs read: JSON lines, CSV, and the files of OpenAI's Batch API.

One pass, batch by batch, in input order. A file becomes visible whole or not at all, and never replaces another; the
standard output is written as the rows come. A name that ends in .gz is compressed, without a time in it: the same
results are the same bytes.
"""

from __future__ import annotations

import contextlib
import csv
import gzip
import io
import json
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO, cast

from jobs import openai_batch
from jobs.results import Results, chosen_columns, read_results
from jobs.wording import count_words
from pipeline import storage
from pipeline.errors import JobError, OutputError
from pipeline.manifest import summarise
from pipeline.records import json_line

FORMATS = ("jsonl", "csv", "openai-batch")
STDOUT = "-"
_BATCH_ROWS = 256
"""Results of a row can be long: this many are in memory as Python objects."""

Seen = Callable[[int], None]


@dataclass(frozen=True)
class Outcome:
    lines: int
    out: str
    failed_lines: int
    errors: str | None
    """The file of failed rows, where they have one of their own."""

    def words(self) -> Iterator[tuple[str, str]]:
        yield "rows", f"{count_words(self.lines, 'line')} to {self.out}"
        if self.errors:
            yield "failed", f"{count_words(self.failed_lines, 'line')} to {self.errors}"


def export(
    output: str,
    form: str,
    out: str = STDOUT,
    *,
    errors: str | None = None,
    columns: Sequence[str] = (),
    partial: bool = False,
    seen: Seen = lambda rows: None,
) -> Outcome:
    """Writes the results at `output` to `out`; with openai-batch, failed rows to `errors` or a file beside `out`."""
    results = read_results(output, partial=partial)
    if form == "openai-batch":
        openai_batch.refuse_other_tasks(results.plan)
        if columns:
            raise JobError("--columns: openai-batch has a form of its own; leave it out, or use jsonl or csv")
        errors = errors or (None if out == STDOUT else errors_beside(out))
    elif errors:
        raise JobError(f"--errors: in {form} failed rows are among the others, as status = failed; leave it out")
    names = chosen_columns(results, columns)
    for place in {out, errors} - {STDOUT, None}:
        if storage.exists(cast(str, place)):
            raise OutputError(f"{place} is already there; name another file, or delete it")
    with _writing(out) as to, _writing(errors) if errors else contextlib.nullcontext(to) as bad:
        # The second is published first: when results are there, so are their errors.
        if form == "openai-batch":
            lines, failed = _openai(results, to, bad, seen)
        else:
            lines, failed = (_jsonl if form == "jsonl" else _csv)(results, to, names, seen), 0
    if not errors:
        lines, failed = lines + failed, 0
    return Outcome(lines, out, failed, errors)


def errors_beside(out: str) -> str:
    """`a.jsonl.gz` -> `a.errors.jsonl.gz`."""
    directory, slash, name = out.rpartition("/")
    stem, dot, ending = name.partition(".")
    return f"{directory}{slash}{stem}.errors{dot}{ending}"


def _jsonl(results: Results, to: BinaryIO, columns: Sequence[str], seen: Seen) -> int:
    for row in _rows(results, columns, seen):
        to.write(json_text(row).encode())
    return results.rows


def _csv(results: Results, to: BinaryIO, columns: Sequence[str], seen: Seen) -> int:
    """Lists and structures are JSON text in a cell; null is an empty one."""
    text = io.TextIOWrapper(to, "utf-8", newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    for row in _rows(results, columns, seen):
        writer.writerow([_cell(row[name]) for name in columns])
    text.flush()
    text.detach()
    return results.rows


def _openai(results: Results, to: BinaryIO, errors: BinaryIO, seen: Seen) -> tuple[int, int]:
    lines = failed = 0
    rows = _rows(results, openai_batch.columns(results.schema().names), seen)
    started_at = summarise(results.plan, results.entries).started_at
    for line in openai_batch.lines(rows, results.plan, started_at):
        is_error = line["error"] is not None
        failed, lines = failed + is_error, lines + (not is_error)
        (errors if is_error else to).write(json_text(line).encode())
    return lines, failed


def _rows(results: Results, columns: Sequence[str], seen: Seen) -> Iterator[dict[str, Any]]:
    for _, batch in results.batches(columns=columns, rows=_BATCH_ROWS):
        yield from batch.to_pylist()
        seen(batch.num_rows)


def json_text(values: dict[str, Any]) -> str:
    """A line of JSON that every parser reads: what is no number (NaN, infinity) is null."""
    return json_line(_finite(values))


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_finite(inner) for inner in value]
    return value


def _cell(value: Any) -> Any:
    if value is None or (isinstance(value, str | int | float) and not isinstance(value, bool)):
        return value
    form = json.loads(json_text({"": value}))[""]  # dates and bytes have a form as text
    return form if isinstance(form, str) else json.dumps(form, ensure_ascii=False)


@contextlib.contextmanager
def _writing(place: str) -> Iterator[BinaryIO]:
    """A stream whose content is published as `place` when the block ends well; "-" is the standard output."""
    if place == STDOUT:
        yield cast(BinaryIO, sys.stdout.buffer)
        sys.stdout.buffer.flush()
        return
    with storage.scratch(place) as path:
        try:
            with path.open("wb") as file:
                if place.endswith(".gz"):
                    with gzip.GzipFile(filename="", mode="wb", fileobj=file, mtime=0) as packed:
                        yield cast(BinaryIO, packed)
                else:
                    yield file
        except BrokenPipeError:
            raise  # of the standard output, where both are written
        except OSError as error:
            raise OutputError(f"cannot write {place}: {error}") from error
        if not storage.publish_if_absent(place, path):
            raise OutputError(f"{place} has appeared meanwhile; name another file, or delete it")
