"""One partition, run by whoever has its lease: decide again, write the attempt down, run the job, write the end down.

The lease keeps two callers from the same work. That nothing is written twice is held by the job itself, which commits
every shard once, whoever computes it.
"""

from __future__ import annotations

import contextlib
import datetime
import logging
import threading
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from engine.errors import EngineError
from jobs import launch
from jobs.scheduling import due
from jobs.scheduling.attempts import Record
from jobs.scheduling.due import Decision, Work
from jobs.scheduling.new_rows import NewRows
from jobs.scheduling.partition_lease import PartitionLease
from jobs.scheduling.partitions import Partition
from jobs.scheduling.schedule_file import Scheduled
from jobs.scheduling.spec import seconds_of
from jobs.spec import Job
from jobs.wording import count_words, duration, failed_words
from pipeline import activity, storage
from pipeline.errors import EmptyInput, JobError, PenstockError
from pipeline.leases import LEASE_SECONDS
from pipeline.sources import Source
from pipeline.sources.files import FileSource
from pipeline.worker_facts import worker_name
from schemas.scheduling import DONE, FAILED, REFUSED, STOPPED

if TYPE_CHECKING:
    from rich.console import Console

HELD, OVER_LIMIT = "held", "over limit"
"""States of a result beside those of a decision: somebody else runs it; it is done, with too many failed rows."""

SKEW = datetime.timedelta(minutes=2)

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class How:
    """What one call of run-due has in common for all partitions."""

    scheduled: Scheduled
    clock: Callable[[], datetime.datetime]
    flags: Sequence[str] = ()
    console: Console | None = None
    run: str = field(default_factory=lambda: uuid.uuid4().hex)
    """Tells this call from others."""
    lease_seconds: float = LEASE_SECONDS
    stopping: threading.Event = field(default_factory=threading.Event)


@dataclass(frozen=True)
class Result:
    """What became of a partition in this call."""

    partition: Partition
    state: str
    reason: str
    decision: Decision | None = None
    shards_computed: int = 0
    held: PartitionLease | None = None


def run_partition(how: How, partition: Partition, *, watch: bool = True, seen: PartitionLease | None = None) -> Result:
    """Runs what is to be done of a partition, if nobody else does. `seen` is somebody's lease from before: it is
    watched until it shows life, or taken over."""
    everything = how.scheduled.schedule.only_new_rows  # what is new depends on what is done: one partition at a time
    lease = seen or PartitionLease(
        how.scheduled.root, None if everything else partition.key, how.run, how.lease_seconds
    )
    with lease.taken(how.stopping) as is_ours:
        if not is_ours:
            return Result(partition, HELD, f"{lease.holder} runs it", held=lease)
        decision = due.decide(how.scheduled, partition, how.clock(), watch=watch)
        if decision.state != due.DUE or decision.work is None or how.stopping.is_set():
            return Result(partition, decision.state, decision.reason, decision)
        return _run(how, decision, decision.work)


def _run(how: How, decision: Decision, work: Work) -> Result:
    """Runs the work of a decision, and writes the attempt down before and after."""
    partition = decision.partition
    record = Record.begin(how.scheduled.root, partition, work.version.number, work.asked, worker_name())
    _warn_of_skew(record)
    clock = _Timeout(how.scheduled.schedule.timeout, work.version.output)
    started = time.monotonic()
    try:
        with clock:
            outcome = _compute(how, partition, work)
    except _Refused as error:
        record.end(REFUSED, error=str(error))
        return Result(partition, due.REFUSED, str(error), decision)
    except (PenstockError, EngineError) as error:
        said = f"stopped after {how.scheduled.schedule.timeout} (timeout)" if clock.is_over else str(error)
    except Exception as error:  # of one partition; the others go on
        _log.exception("%s", partition.key)
        said = f"{type(error).__name__}: {error}"
    else:
        record.end(DONE, shards_computed=outcome.this_run.shards)
        rows, state = outcome.summary.ok + outcome.summary.failed, OVER_LIMIT if outcome.is_over_limit else due.DONE
        words = f"version {work.version.number}: {count_words(rows, 'row')}, {failed_words(outcome.summary)}"
        took = duration(time.monotonic() - started)
        return Result(partition, state, f"{words}, {took}", decision, outcome.this_run.shards)
    stopped = how.stopping.is_set() and not clock.is_over
    record.end(STOPPED if stopped else FAILED, error=said)
    if stopped:
        return Result(partition, due.DUE, "stopped; finished shards stay", decision)
    _log.warning("%s: %s", partition.key, said)
    again = due.decide(how.scheduled, partition, how.clock())
    if again.state == due.DUE:
        return Result(partition, due.RETRY, f"failed, now again: {said}", again)
    return Result(partition, again.state, again.reason, again)


def _compute(how: How, partition: Partition, work: Work) -> launch.Outcome:
    job = how.scheduled.job(partition, work.version.output)
    source: Source = due.open_input(job)
    if work.files is not None:
        assert isinstance(source, FileSource)
        source = source.only(work.files)
    if how.scheduled.schedule.only_new_rows:
        source = NewRows(how.scheduled.root, partition, work.version, job, source)
    elif work.rows_before is not None and how.scheduled.schedule.late_data.on_shrink == "refuse":
        _refuse_fewer_rows(job, source, work.rows_before)
    return launch.run(job, how.flags, how.console, source=source, may_be_empty=True)


class _Refused(JobError):
    """The input is not to be scored, though nothing is wrong with it as such."""


def _refuse_fewer_rows(job: Job, source: Source, before: int) -> None:
    rows = 0
    with contextlib.suppress(EmptyInput):
        rows = sum(item.rows for item in source.work_items(job.output.shard_rows))
    if rows < before:
        raise _Refused(f"shrank: {count_words(rows, 'row')}, {before:,} before")


def _warn_of_skew(record: Record) -> None:
    """What is due is judged by this machine's clock, so that should be right. The store's is asked, by a file that was
    written just now."""
    written = storage.modified_at(record.url)
    if written is None:
        return
    ahead = datetime.datetime.fromisoformat(record.attempt.started_at) - written
    if abs(ahead) > SKEW:
        _log.warning(
            "this machine's clock is %s %s that of the output's store; set it right: partitions become due by it",
            duration(abs(ahead).total_seconds()),
            "ahead of" if ahead > datetime.timedelta(0) else "behind",
        )


class _Timeout:
    """Stops the shards of an output after a time."""

    def __init__(self, timeout: str | None, output: str) -> None:
        self.is_over = False
        self._output = output
        self._timer = threading.Timer(seconds_of(timeout), self._stop) if timeout else None

    def _stop(self) -> None:
        self.is_over = True
        activity.cancel(self._output)

    def __enter__(self) -> None:
        if self._timer:
            self._timer.daemon = True
            self._timer.start()

    def __exit__(self, *error: object) -> None:
        if self._timer:
            self._timer.cancel()
