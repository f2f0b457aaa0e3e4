"""The rows of one shard, from input to output.

A window of requests is kept open, so that the engine has more to do than slots, and a row is handed on as soon as its
turn comes: memory is bounded by the window, whatever the size of the shard. A row that cannot be processed becomes a
failed row whose error is `kind: reason`. Anything else that goes wrong is raised, and fails the shard.
"""

from __future__ import annotations

import functools
import numbers
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import Future, wait
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from . import activity
from .errors import InputError, PromptError
from .generation import Generate
from .kept_columns import convert
from .records import default_record_id
from .scoring import Score
from .sources import read_rows
from .sources.base import Row, WorkItem

if TYPE_CHECKING:
    import pyarrow as pa

    from .inference import ShardJob

WINDOW_PER_SLOT = 4
LEAST_WINDOW = 1024  # sequences: a shard of the usual size as a whole, so that no long one holds up the others
_ERROR_CHARS = 500
_POLL_SECONDS = 0.1  # between looks at whether the run was cancelled


@dataclass(frozen=True)
class Shard:
    """One work item of a job, with what it takes to compute it."""

    item: WorkItem
    job: ShardJob
    task: Generate | Score
    engine: Any
    requests: Callable[[Any, str], Sequence[Any]]
    """Turns a prompt of the task, and the id of its record, into requests to the engine."""
    refusal: type[Exception]
    """What the engine raises for a request that it can never serve."""

    def rows(self) -> Generator[dict[str, Any]]:
        """The output rows, in input order."""
        window = max(LEAST_WINDOW, WINDOW_PER_SLOT * self.engine.options.slots)
        waiting: deque[_Record] = deque()
        sequences = 0
        try:
            for row in read_rows(self.item, self._input_columns):
                waiting.append(self._open(row))
                sequences += waiting[-1].sequences
                activity.opened(1)
                while waiting and (sequences > window or waiting[0].is_ready):
                    yield from self._close(waiting[0])
                    sequences -= waiting.popleft().sequences
                    activity.opened(-1)
            while waiting:
                yield from self._close(waiting[0])
                waiting.popleft()
                activity.opened(-1)
        finally:
            activity.opened(-len(waiting))
            for record in waiting:
                record.drop()

    @functools.cached_property
    def _kept(self) -> list[pa.Field]:
        return self.job.plan.kept

    @functools.cached_property
    def _id_column(self) -> str | None:
        return self.job.settings["id"]

    @property
    def _run(self) -> activity.Run:
        return (self.job.output, self.job.ignores_cancel)

    @property
    def _input_columns(self) -> frozenset[str]:
        ids = [self._id_column] if self._id_column else []
        return self.task.columns.union(ids, (kept.name for kept in self._kept))

    def _open(self, row: Row) -> _Record:
        """Sends off what a row asks of the engine, or marks the row as failed."""
        activity.stop_if_cancelled(*self._run)
        record = _Record(
            {
                "record_id": default_record_id(self.item.source_file, row.row),
                "sample_index": 0,
                "source_file": self.item.source_file,
                "source_row": row.row,
                "status": "ok",
                "seed": (self.job.settings["sampling"] or {}).get("seed"),
                "model_fingerprint": self.job.plan.model_fingerprint,
                "job_fingerprint": self.job.plan.job_fingerprint,
            }
        )
        try:
            if row.values is None:
                raise _RowError(row.error)
            self._identify(record, row.values)
            self._keep(record, row.values)
            self._ask(record, row.values)
        except _RowError as error:
            record.fail(str(error))
        return record

    def _identify(self, record: _Record, values: Mapping[str, Any]) -> None:
        """The id of the input, where the job names a column for it."""
        if self._id_column is None:
            return
        value = values.get(self._id_column)
        if value is None or value == "":
            raise _RowError(f"id: column {self._id_column!r} is {'missing or null' if value is None else 'empty'}")
        if isinstance(value, bool) or not isinstance(value, str | numbers.Integral):
            kind = type(value).__name__
            raise _RowError(f"id: column {self._id_column!r} holds a {kind}, {value!r:.60}; use strings or integers")
        record.columns["record_id"] = str(value)

    def _keep(self, record: _Record, values: Mapping[str, Any]) -> None:
        """The input columns that go along to the output."""
        try:
            for kept in self._kept:
                record.columns[kept.name] = convert(values.get(kept.name), kept)
        except InputError as error:
            raise _RowError(str(error)) from error

    def _ask(self, record: _Record, values: Mapping[str, Any]) -> None:
        try:
            prompt: Any = self.task.prepare(values)  # of the same task that is asked about it below
        except Exception as error:  # whatever a row can do to a template or a tokenizer, it does to itself alone
            reason = error if isinstance(error, PromptError) else f"{type(error).__name__}: {error}"
            raise _RowError(f"prompt: {reason}") from error
        record.columns["prompt_token_count"] = prompt.token_count
        holds = self.engine.options.max_length
        if prompt.context_tokens > holds:
            raise _RowError(
                f"too long: {prompt.context_tokens} tokens of context are needed, the engine holds {holds}"
                " (engine.max_length, or what the model and memory allow)"
            )
        record.prompt, record.sequences = prompt, self.task.sequences(prompt)
        if self.job.settings["include_prompt"]:
            record.columns["prompt"] = prompt.text
        try:
            for request in self.requests(prompt, record.columns["record_id"]):
                record.answers.append(self.engine.submit(request))
        except self.refusal as error:
            raise _RowError(f"request: {error}") from error

    def _close(self, record: _Record) -> Iterator[dict[str, Any]]:
        """Waits for the answers of a record and makes its output rows."""
        rows = [record.columns]
        if record.columns["status"] == "ok":
            try:
                answers = [_wait(answer, self._run) for answer in record.answers]
            except self.refusal as error:
                record.fail(f"request: {error}")
            else:
                rows = [record.columns | columns for columns in self.task.rows(record.prompt, answers)]
        activity.count(rows)
        yield from rows


@dataclass
class _Record:
    """An input row on its way: what is known of its output rows, and the answers it waits for."""

    columns: dict[str, Any]
    prompt: Any = None
    sequences: int = 1
    """How many it keeps open: samples, or continuations."""
    answers: list[Future[Any]] = field(default_factory=list)

    @property
    def is_ready(self) -> bool:
        return all(answer.done() for answer in self.answers)

    def fail(self, error: str) -> None:
        self.drop()
        error = " ".join(error.encode(errors="backslashreplace").decode().split())
        self.columns |= {"status": "failed", "error": error[:_ERROR_CHARS]}

    def drop(self) -> None:
        """Tells the engine that nobody waits any more."""
        for answer in self.answers:
            answer.cancel()


class _RowError(Exception):
    """Why a row fails, as `kind: reason`; failures are counted by kind."""


def _wait(answer: Future[Any], run: activity.Run) -> Any:
    while not answer.done():
        activity.stop_if_cancelled(*run)
        wait([answer], timeout=_POLL_SECONDS)
    return answer.result()
