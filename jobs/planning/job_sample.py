"""What a job will ask of the engine, from a look at its data: a sample of prompt lengths, and lengths of completions.

Rows are taken from all over the input. How long completions will be nobody knows beforehand: it is max_tokens for each,
which is the most there can be, unless a number, a histogram or the output of an earlier run is given.
"""

from __future__ import annotations

import csv
import io
import math
import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from engine.planning.batching import Workload
from jobs.launch import Parts, open_parts, refuse_missing_columns
from jobs.spec import Job
from jobs.validate import look_at
from jobs.wording import count_words
from pipeline.errors import InputError, JobError, PromptError
from pipeline.sources import Row, read_rows
from pipeline.storage import exists, join, list_names, open_input, read_bytes
from schemas.manifest import PLAN_NAME

PAGE_TOKENS = 128
_PIECES = 20
"""Of the input that rows are taken from."""
_MARGIN = 1.25
_EARLIER_ROWS = 20_000
_HISTOGRAM_COLUMNS = ["tokens", "count"]


@dataclass(frozen=True)
class JobSample:
    """A look at a job's rows."""

    parts: Parts
    workload: Workload
    rows: int
    """Of the whole input."""
    looked_at: int
    failed: int
    """Of those looked at."""
    completions_from: str
    """Where their lengths come from, in words."""

    @property
    def longest_prompt(self) -> int:
        return max(self.workload.prompts)

    @property
    def is_whole(self) -> bool:
        return self.looked_at >= self.rows


def sample(job: Job, rows: int, output_tokens: str | None = None) -> JobSample:
    """Reads rows from all over the input; no device is touched."""
    parts = open_parts(job)
    refuse_missing_columns(parts)
    return sample_of(parts, rows, output_tokens)


def sample_of(
    parts: Parts,
    rows: int,
    output_tokens: str | None = None,
    *,
    earlier: tuple[float, int] | None = None,
    most_seconds: float = math.inf,
) -> JobSample:
    """The same of a job that is open. `earlier`: how long completions were on the average, and of how many runs; it
    counts unless `output_tokens` says otherwise. After `most_seconds` what was seen has to do.
    """
    job, until = parts.job, time.monotonic() + most_seconds
    total, chosen = _rows(parts, rows)
    lengths: list[tuple[int, ...]] = []
    failed = 0
    for row in chosen:
        try:
            lengths.append(look_at(row, parts).sequence_lengths)
        except PromptError:
            failed += 1
        if lengths and time.monotonic() > until:
            break
    if not lengths:
        raise InputError(
            f"none of the {failed} rows looked at has a prompt, so there is nothing to plan; penstock validate says why"
        )
    per_row = len(lengths[0])
    prompts = tuple(length for row in lengths for length in row)
    if job.task == "score":
        completions, source = (0,) * len(prompts), "nothing is generated"
    else:
        completions, source = _completions(job, len(prompts), output_tokens, earlier)
    answered = max(1, round(total * len(lengths) / (len(lengths) + failed)))
    longest = _longest(job, parts, prompts, completions, is_whole=len(lengths) + failed >= total)
    workload = Workload(
        prompts,
        tuple(
            min(one, max(1, longest - prompt)) if one else 0 for prompt, one in zip(prompts, completions, strict=True)
        ),
        answered * per_row,
        longest,
        job.sampling.n if job.task == "generate" else 1,
        min(job.output.shard_rows, total) * per_row,
        job.runner.workers,
    )
    return JobSample(parts, workload, total, len(lengths) + failed, failed, source)


def _rows(parts: Parts, count: int) -> tuple[int, Iterator[Row]]:
    """How many rows there are, and some of them."""
    items = parts.work_items
    total = sum(item.rows for item in items)
    step = max(1, len(items) // max(_PIECES, -(-count // parts.job.output.shard_rows)))
    pieces = items[::step]
    random.Random(0).shuffle(pieces)  # who stops early has seen all over the input too

    def chosen() -> Iterator[Row]:
        left = count
        for index, item in enumerate(pieces):
            share = -(-left // (len(pieces) - index))
            for taken, row in enumerate(read_rows(item), start=1):
                if taken > share:
                    break
                yield row
                left -= 1

    return total, chosen()


def _longest(job: Job, parts: Parts, prompts: Sequence[int], completions: Sequence[int], *, is_whole: bool) -> int:
    """Of prompt and completion together: as the job says, or what the rows seen need, with some to spare."""
    if job.engine.max_length != "auto":
        return job.engine.max_length
    most = max(prompts) + (job.sampling.max_tokens if any(completions) else 0)
    if not is_whole:
        most = round(most * _MARGIN)
    return max(2, min(-(-most // PAGE_TOKENS) * PAGE_TOKENS, parts.max_length))


def _completions(
    job: Job, count: int, source: str | None, earlier: tuple[float, int] | None
) -> tuple[tuple[int, ...], str]:
    """A length for each prompt, and where it comes from."""
    most = job.sampling.max_tokens
    if source is None and earlier is not None:
        mean, runs = earlier
        mean = max(1.0, min(float(most), mean))
        spread = tuple(math.floor((at + 1) * mean) - math.floor(at * mean) for at in range(count))
        return spread, f"{mean:.1f} on the average, as in {count_words(runs, 'earlier run')} that asked the same"
    if source is None:
        return (most,) * count, f"sampling.max_tokens ({most}) for every one, which is the most there can be"
    if source.isdecimal():
        if not 1 <= int(source) <= most:
            raise JobError(f"--output-tokens {source}: sampling.max_tokens is {most}; give 1 to {most}")
        return (int(source),) * count, f"{source} for every one, as given"
    if exists(join(source, PLAN_NAME)):
        lengths, where = _earlier(source), f"those of the run in {source}"
    else:
        lengths, where = _histogram(source), f"the histogram {source}"
    clipped = [max(1, min(most, length)) for length in lengths]
    return tuple(random.Random(0).choices(clipped, k=count)), where


def _histogram(path: str) -> list[int]:
    """Lengths from a CSV with the columns tokens and count."""
    try:
        rows = list(csv.reader(io.StringIO(read_bytes(path, limit_bytes=1 << 20).decode("utf-8-sig")), strict=True))
    except FileNotFoundError as error:
        raise JobError(
            f"--output-tokens {path}: no number, no file, and no output of a run; give one of them"
        ) from error
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise JobError(f"--output-tokens {path}: cannot be read: {error}") from error
    if not rows or rows[0] != _HISTOGRAM_COLUMNS:
        raise JobError(f"{path}: the first line of a histogram is tokens,count")
    counted: list[tuple[int, int]] = []
    for number, row in enumerate(rows[1:], start=2):
        if len(row) != 2 or not all(value.isdecimal() for value in row) or not int(row[0]):
            raise JobError(f"{path}:{number}: {','.join(row)!r} is not a positive number of tokens and a count")
        counted.append((int(row[0]), int(row[1])))
    total = sum(count for _, count in counted)
    if not total:
        raise JobError(f"{path}: the histogram is empty")
    return [tokens for tokens, count in counted for _ in range(-(-count * 1000 // total) if count else 0)]


def _earlier(output: str) -> list[int]:
    """Of the completions that an output holds."""
    import pyarrow.parquet as pq

    lengths: list[int] = []
    for name in list_names(output):
        if name.endswith(".parquet") and not name.startswith("_"):
            with open_input(join(output, name)) as file:
                table = pq.read_table(file, columns=["status", "completion_token_count"])
            for status, count in zip(*(table.column(index).to_pylist() for index in range(2)), strict=True):
                if status == "ok" and count:
                    lengths.append(count)
        if len(lengths) >= _EARLIER_ROWS:
            break
    if not lengths:
        raise JobError(f"--output-tokens {output}: no shard of that run is done")
    return lengths
