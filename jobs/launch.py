"""From a job to its finished output: check everything that can be checked, plan, run what is missing, sum up.

Whatever can be wrong with a job is found before the plan is stored: the plan binds the output to the job, so a mistake
found later would cost the user the output path as well. A finished job needs neither Beam nor the engine.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.metadata
import itertools
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from engine.compilation.preflight import CheckpointFacts, preflight
from jobs.comparison import Comparison
from jobs.foreseen import foreseen_lines
from jobs.job_file import store
from jobs.runners import refuse_elsewhere
from jobs.settle import NOTHING_SAID, Chooser, Planning, Settled, kept, learn, settle
from jobs.spec import Job
from jobs.wording import count_words, duration, failed_words, rate_words, token_words
from pipeline import cancellation, storage
from pipeline.errors import EmptyInput, JobError, PlanMismatch, PromptError
from pipeline.generation import Generate
from pipeline.manifest import Manifest, summarise
from pipeline.records import default_record_id
from pipeline.scoring import Score
from pipeline.sources import Row, Source, open_source, read_rows
from pipeline.sources.base import WorkItem
from pipeline.tokenizer import Tokenizer
from pipeline.workplan import Asked, plan_job, read_plan
from schemas.manifest import PLAN_NAME, SUCCESS_NAME, Plan, Summary
from schemas.prediction import Prediction

if TYPE_CHECKING:
    from rich.console import Console

    from pipeline.inference import ShardJob

PEEKED_ROWS = 20


@dataclass(frozen=True)
class Parts:
    """What a job is made of, each found to be usable."""

    job: Job
    model: CheckpointFacts
    source: Source
    tokenizer: Tokenizer
    task: Generate | Score
    """Makes requests of rows; constructing it has compiled every template."""
    found: list[WorkItem] = dataclasses.field(default_factory=list, repr=False, compare=False)
    """The shards, once they have been looked for."""

    @property
    def max_length(self) -> int:
        """Tokens of a prompt and its completion; memory may allow less."""
        asked = self.job.engine.max_length
        return self.model.context_tokens if asked == "auto" else asked

    @property
    def work_items(self) -> list[WorkItem]:
        """The shards; finding them reads the whole input, once."""
        if not self.found:
            self.found.extend(self.source.work_items(self.job.output.shard_rows))
        return list(self.found)

    def first_rows(self, count: int) -> Iterator[tuple[str, Row]]:
        """The first rows of the input, read as the job will read them, each with its name."""
        items = self.source.work_items(self.job.output.shard_rows)
        rows = ((default_record_id(item.source_file, row.row), row) for item in items for row in read_rows(item))
        return itertools.islice(rows, count)


@dataclass(frozen=True)
class Outcome:
    """A finished job: the sum of all runs, and of this one, which took `seconds` with loading and compiling."""

    job: Job
    summary: Summary
    this_run: Summary
    seconds: float
    prediction: Prediction | None = None

    @property
    def is_over_limit(self) -> bool:
        return self.summary.failed_fraction > self.job.limits.max_failed_fraction


def outcome_lines(outcome: Outcome) -> Iterator[tuple[str, str]]:
    """What `penstock run` prints at the end: a label and its text."""
    summary, limit = outcome.summary, outcome.job.limits.max_failed_fraction
    yield "job", f"{summary.name} ({summary.task}), finished"
    yield "rows", f"{summary.ok + summary.failed:,} done: {summary.ok:,} ok, {failed_words(summary)}"
    yield from (("", f"{count:,} {reason}") for reason, count in summary.failed_reasons.items())
    yield "tokens", token_words(summary)
    if outcome.this_run.shards:
        rates = rate_words(outcome.this_run, outcome.seconds)
        yield "this run", f"{duration(outcome.seconds)}, loading and compiling included: {rates}"
        if outcome.prediction:
            yield from Comparison(outcome.prediction, outcome.this_run).lines()
    else:
        yield "this run", "nothing to do: every shard was there"
    yield "output", outcome.job.output.path
    if outcome.is_over_limit:
        yield "limit", f"{summary.failed_fraction:.2%} failed, limits.max_failed_fraction is {limit:.2%}"


def open_parts(job: Job, source: Source | None = None) -> Parts:
    """Reads the checkpoint's config and headers, the tokenizer and the list of input files, unless `source` stands in
    for these; no device is touched."""
    model = preflight(job.model.checkpoint, storage.open_input, **job.engine.layouts())
    tokenizer = Tokenizer.load(job.model.checkpoint)
    task = (Generate if job.task == "generate" else Score)(job.settings(), tokenizer)
    source = source or open_source(
        path=job.input.path,
        format=job.input.file_format,
        tfds=job.input.tfds,
        split=job.input.split,
        data_dir=job.input.data_dir,
    )
    parts = Parts(job, model, source, tokenizer, task)
    _refuse_impossible(parts)
    return parts


def run(
    job: Job,
    flags: Sequence[str] = (),
    console: Console | None = None,
    *,
    planning: Planning = NOTHING_SAID,
    tell: Callable[[Iterable[tuple[str, str]]], None] = lambda lines: None,
    engine_factory: str | None = None,
    source: Source | None = None,
    may_be_empty: bool = False,
) -> Outcome:
    """Runs what is missing of a job and returns when it is finished.

    `flags` go to Beam. Progress is shown on `console`, if there is one, and `tell` gets labelled lines before the first
    row is computed: what is foreseen. `engine_factory` ("module:callable") stands in for `Engine.load`, for tests and
    benchmarks. `source` stands in for the job's input: some of its files, or rows. A job without rows is an error,
    unless it `may_be_empty`; then it is finished at once.
    """
    started = time.monotonic()
    refuse_elsewhere(job.runner)
    settled, manifest = _begin(job, source, may_be_empty, planning, flags)
    todo = manifest.todo()
    if todo:
        store(planning.applied(job), job.output.path)
        settled = kept(settled)
        tell(foreseen_lines(settled, manifest.plan.rows_total, sum(item.rows for item in todo)))
        _compute(settled.parts.job, manifest, todo, flags, console, engine_factory)
    outcome = replace(finish(job, manifest, todo, started), prediction=settled.prediction)
    if todo and settled.prediction:
        learn(settled.prediction, outcome.this_run, outcome.seconds)
    return outcome


def prepare(
    job: Job,
    planning: Planning,
    flags: Sequence[str],
    choose: Chooser,
    check: Callable[[Settled], object],
) -> tuple[Settled, Manifest]:
    """Checks all that can be checked and plans the output, for workers elsewhere in a shape that `choose` settles, if
    the output has kept none. `check` refuses a shape before it binds the output."""
    return _begin(job, None, False, planning, flags, choose, check)


def _begin(
    job: Job,
    source: Source | None,
    may_be_empty: bool,
    planning: Planning,
    flags: Sequence[str],
    choose: Chooser | None = None,
    check: Callable[[Settled], object] = lambda settled: None,
) -> tuple[Settled, Manifest]:
    """Checks the job, settles in what shape it runs, and plans the output."""
    parts = open_parts(planning.applied(job), source)
    output = job.output.path
    is_new = not storage.exists(storage.join(output, PLAN_NAME))
    if is_new:
        with contextlib.suppress(EmptyInput):  # which is for the plan to refuse, or not
            refuse_missing_columns(parts)
    if not storage.exists(storage.join(output, SUCCESS_NAME)):
        storage.check_writable(output)
    settled = settle(parts, planning, flags, choose)
    check(settled)
    try:
        plan = _plan(settled.parts, may_be_empty)
    except PlanMismatch:
        if not is_new:
            raise
        settled = settle(parts, planning, flags, choose)  # another run has begun meanwhile, and chosen
        check(settled)
        plan = _plan(settled.parts, may_be_empty)
    return settled, Manifest(output, plan)


def _plan(parts: Parts, may_be_empty: bool) -> Plan:
    output = parts.job.output.path
    return plan_job(output, parts.source, parts.found, may_be_empty=may_be_empty, **asked(parts))


def finish(job: Job, manifest: Manifest, todo: Sequence[WorkItem], started: float) -> Outcome:
    """Declares the job finished and sums up; `todo` is what this run, which began at `started`, had to compute."""
    summary = manifest.finalise()
    computed = {item.shard for item in todo}
    this_run = summarise(manifest.plan, [entry for entry in manifest.entries() if entry.shard in computed])
    return Outcome(job, summary, this_run, time.monotonic() - started)


def dry_run(job: Job, flags: Sequence[str] = (), planning: Planning = NOTHING_SAID) -> Iterator[tuple[str, str]]:
    """What `run` would do and is expected to take; nothing is written."""
    parts = open_parts(planning.applied(job))
    output, rows = job.output.path, None
    if storage.exists(storage.join(output, PLAN_NAME)):
        manifest = Manifest(output, read_plan(output))
        rows = sum(item.rows for item in manifest.missing())
    else:
        refuse_missing_columns(parts)
    settled = settle(parts, planning, flags)
    items = parts.work_items
    total = sum(item.rows for item in items)
    yield "job", f"{job.name} ({job.task}): {total:,} rows in {count_words(len(items), 'shard')}"
    left = total if rows is None else rows
    yield from foreseen_lines(settled, total, left)
    yield "dry run", "nothing was written"


def refuse_missing_columns(parts: Parts) -> None:
    """A job that names a column no row has is mistaken itself; its rows are not bad, one by one."""
    rows = [row.values for _, row in parts.first_rows(PEEKED_ROWS) if row.values is not None]
    present = set().union(*rows)
    id_column = parts.job.input.id_column
    named = {"input.id": frozenset({id_column} if id_column else ())}
    if not any(_prepares(parts, row) for row in rows):
        named["prompt"] = parts.task.columns
    for field, columns in named.items():
        if rows and (absent := sorted(columns - present)):
            raise JobError(f"{field}: no row has a column {', '.join(absent)}; they have {', '.join(sorted(present))}")


def _prepares(parts: Parts, row: Mapping[str, Any]) -> bool:
    try:
        parts.task.prepare(row)
    except PromptError:
        return False
    return True


def _refuse_impossible(parts: Parts) -> None:
    """What the job asks of this checkpoint and the checkpoint does not have."""
    job, model = parts.job, parts.model
    if parts.max_length > model.context_tokens:
        raise JobError(f"engine.max_length: {parts.max_length}, the model's context is {model.context_tokens} tokens")
    for token in job.sampling.stop_token_ids:
        if token >= model.vocab_size:
            raise JobError(f"sampling.stop_token_ids: {token}, the model's vocabulary is 0 to {model.vocab_size - 1}")


def asked(parts: Parts) -> Asked:
    """What the job asks for, as plans have it."""
    job = parts.job
    return Asked(
        name=job.name,
        task=job.task,
        settings=job.settings(),
        model_fingerprint=parts.model.fingerprint,
        tokenizer_fingerprint=parts.tokenizer.fingerprint,
        keep_columns=job.output.keep_columns,
        shard_rows=job.output.shard_rows,
    )


def _compute(
    job: Job,
    manifest: Manifest,
    todo: Sequence[WorkItem],
    flags: Sequence[str],
    console: Console | None,
    engine_factory: str | None,
) -> None:
    from jobs.beam_run import compute  # imports Beam, which takes seconds
    from jobs.runners import pipeline_options

    options = pipeline_options(job.runner, flags)
    work = shard_job(job, manifest.plan, engine_factory, cancellation.begin(job.output.path))
    compute(manifest, todo, work, options, console)


def shard_job(job: Job, plan: Plan, engine_factory: str | None, ignores_cancel: str | None = None) -> ShardJob:
    """What a worker is told."""
    from pipeline.inference import ShardJob

    return ShardJob.of(
        job.output.path,
        plan,
        job.model.checkpoint,
        slots=None if job.engine.slots == "auto" else job.engine.slots,
        prefill_tokens=None if job.engine.prefill_tokens == "auto" else job.engine.prefill_tokens,
        chip=job.engine.chip,
        watchdog_seconds=None if job.engine.watchdog_seconds == "auto" else job.engine.watchdog_seconds,
        hosts=job.engine.hosts.model_dump() if job.engine.hosts else None,
        compile_cache=job.engine.compile_cache,
        engine_factory=engine_factory,
        ignores_cancel=ignores_cancel,
        penstock=importlib.metadata.version("penstock"),
    )
