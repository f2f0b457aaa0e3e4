"""A look at a job before it runs: its first rows as prompts, their lengths in tokens, and the rows that would fail.

Nothing is written and no device is touched, so it can be done anywhere and at any time.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from jobs.launch import Parts, open_parts, refuse_missing_columns
from jobs.spec import Job
from jobs.wording import count_words, printable
from pipeline import generation, scoring
from pipeline.errors import JobError, PromptError
from pipeline.sources import Row

PROBLEMS_LISTED = 10
PROMPT_CHARS_SHOWN = 1000


@dataclass
class Findings:
    """What the first rows of a job come to."""

    parts: Parts
    rows: int = 0
    prompts: list[tuple[str, str, int]] = field(default_factory=list)
    """The first prompts, to be shown: name of the row, text, tokens."""
    token_counts: list[int] = field(default_factory=list)
    """Of the prompts of all rows that have one."""
    problems: list[tuple[str, str]] = field(default_factory=list)
    """Rows that would fail: name and reason."""
    cut_rows: int = 0
    """Rows whose completion the context would cut before it reaches sampling.max_tokens."""

    @property
    def is_over_limit(self) -> bool:
        return len(self.problems) > self.parts.job.limits.max_failed_fraction * self.rows


def validate(job: Job, *, rows: int = 1000, shown: int = 3) -> Findings:
    """Looks at the checkpoint and at the first `rows` rows; an error if the job cannot be run at all."""
    parts = open_parts(job)
    refuse_missing_columns(parts)
    findings = Findings(parts)
    present: set[str] = set()
    for name, row in parts.first_rows(rows):
        findings.rows += 1
        present.update(row.values or ())
        try:
            seen = look_at(row, parts)
        except PromptError as error:
            findings.problems.append((name, str(error)))
            continue
        findings.token_counts.append(seen.token_count)
        is_cut = job.task == "generate" and seen.token_count + job.sampling.max_tokens > parts.max_length
        findings.cut_rows += is_cut
        if len(findings.prompts) < shown:
            findings.prompts.append((name, seen.text or "", seen.token_count))
    if present and (absent := [column for column in job.output.keep_columns if column not in present]):
        raise JobError(
            f"output.keep_columns: none of the first {count_words(findings.rows, 'row')} has a column"
            f" {', '.join(absent)}; they have {', '.join(sorted(present))}"
        )
    return findings


def look_at(row: Row, parts: Parts) -> generation.Prompt | scoring.Prompt:
    """What a row asks of the model; PromptError says why the row would fail."""
    if row.values is None:
        raise PromptError(row.error)
    _check_id(row.values, parts.job.input.id_column)
    prompt = parts.task.prepare(row.values)
    if prompt.token_count == 0 and parts.job.task == "generate":
        raise PromptError("the prompt is empty")
    if prompt.context_tokens > parts.max_length:
        raise PromptError(f"too long: {prompt.context_tokens} tokens of context, at most {parts.max_length} fit")
    return prompt


def _check_id(values: Mapping[str, Any], column: str | None) -> None:
    if column is not None and values.get(column) in (None, ""):
        raise PromptError(f"id: column {column!r} is missing, null or empty")


def finding_lines(findings: Findings) -> Iterator[tuple[str, str]]:
    """What `penstock validate` prints: a label and its text."""
    parts, job = findings.parts, findings.parts.job
    model = parts.model
    yield "job", f"{job.name} ({job.task})"
    yield (
        "model",
        (
            f"{model.architecture}, {model.parameters:,} parameters, {model.dtype},"
            f" context of {parts.max_length:,} tokens"
        ),
    )
    files = parts.source.files()
    yield "input", f"{count_words(len(files), 'file')}, {sum(file.size_bytes for file in files):,} bytes"
    for name, text, token_count in findings.prompts:
        yield "prompt", f"{name}, {count_words(token_count, 'token')}:"
        cut = text[:PROMPT_CHARS_SHOWN] + ("…" if len(text) > PROMPT_CHARS_SHOWN else "")
        yield from (("", f"| {line}") for line in printable(cut).split("\n"))
    yield "rows", f"the first {findings.rows:,} were looked at, {len(findings.problems):,} of them would fail"
    if counts := sorted(findings.token_counts):
        yield (
            "tokens",
            (
                f"{sum(counts):,} in these prompts: {counts[0]:,} at least, {counts[len(counts) // 2]:,} in the middle,"
                f" {counts[-1]:,} at most"
            ),
        )
    if findings.cut_rows:
        yield "cut", f"{count_words(findings.cut_rows, 'row')} with less than sampling.max_tokens left in the context"
    for name, reason in findings.problems[:PROBLEMS_LISTED]:
        yield "bad row", f"{name}: {printable(reason)}"
    if len(findings.problems) > PROBLEMS_LISTED:
        yield "", f"and {len(findings.problems) - PROBLEMS_LISTED:,} more"
    yield "verdict", _verdict(findings)


def _verdict(findings: Findings) -> str:
    limit = findings.parts.job.limits.max_failed_fraction
    if findings.is_over_limit:
        return f"more rows would fail than limits.max_failed_fraction ({limit:.2%}) allows"
    return "the job can be run"
