"""How far a job is, from its output alone: what is done, what failed and why, how fast it went, what is left."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from jobs.comparison import Comparison
from jobs.job_file import STORED_NAME
from jobs.submission.record import read_submission, where
from jobs.wording import count_words, duration, failed_words, rate_words, token_words
from pipeline import cancellation
from pipeline.leases import holders
from pipeline.manifest import Manifest, summarise
from pipeline.prediction import known_prediction
from pipeline.storage import exists, join
from pipeline.workplan import read_plan
from schemas.lease import Lease
from schemas.manifest import SUCCESS_NAME, Plan, ShardEntry, Summary
from schemas.prediction import Prediction
from schemas.submission import Cancellation, Submission

_WORKERS_SHOWN = 10


@dataclass(frozen=True)
class Status:
    """The state of an output. Records are input rows; a record with several samples has several output rows."""

    output: str
    plan: Plan
    done: Summary
    is_finished: bool
    open_shards: tuple[Lease, ...] = ()
    """Those that are not done and that somebody is computing, or was when it died."""
    prediction: Prediction | None = None
    submission: Submission | None = None
    """Which runner the output was last submitted to, if any."""
    cancellation: Cancellation | None = None

    @property
    def busy_seconds(self) -> float:
        """Time in which at least one shard was being computed: pauses between runs do not count."""
        return self.done.busy_seconds

    @classmethod
    def of(cls, output: str, plan: Plan, entries: Sequence[ShardEntry], is_finished: bool) -> Status:
        done = {entry.shard for entry in entries}
        leases = () if is_finished else tuple(lease for lease in holders(output) if lease.shard not in done)
        return cls(
            output=output,
            plan=plan,
            done=summarise(plan, entries),
            is_finished=is_finished,
            open_shards=leases,
            submission=read_submission(output),
            cancellation=cancellation.read(output),
            prediction=known_prediction(output),
        )

    @property
    def records_done(self) -> int:
        return self.done.ok + self.done.failed

    @property
    def seconds_left(self) -> float | None:
        """At the rate so far; None before there is one."""
        if not (self.records_done and self.busy_seconds):
            return None
        return (self.plan.rows_total - self.records_done) * self.busy_seconds / self.records_done


def read_status(output: str) -> Status:
    """The state of the job at `output`; nothing is written."""
    plan = read_plan(output)
    entries = Manifest(output, plan).entries()
    return Status.of(output, plan, entries, exists(join(output, SUCCESS_NAME)))


def status_json(status: Status) -> dict[str, Any]:
    """The same for programs; times are seconds, counts are of records unless they are called rows."""
    plan, done = status.plan, status.done
    return {
        "name": plan.name,
        "task": plan.task,
        "output": status.output,
        "is_finished": status.is_finished,
        "shards": {"done": done.shards, "total": len(plan.shards)},
        "records": {"done": status.records_done, "ok": done.ok, "failed": done.failed, "total": plan.rows_total},
        "rows": done.rows,
        "failed_fraction": done.failed_fraction,
        "failed_reasons": done.failed_reasons,
        "tokens": {
            "prompt": done.prompt_tokens,
            "generated": done.completion_tokens,
            "scored": done.scored_tokens,
        },
        "busy_seconds": round(status.busy_seconds, 3),
        "seconds_left": None if status.is_finished or status.seconds_left is None else round(status.seconds_left, 1),
        "predicted": status.prediction.in_brief() if status.prediction else None,
        "started_at": done.started_at,
        "last_shard_at": done.finished_at,
        "job_fingerprint": plan.job_fingerprint,
        "model_fingerprint": plan.model_fingerprint,
    }


def status_lines(status: Status) -> list[tuple[str, str]]:
    """What `penstock status` prints: a label and its text."""
    plan, done = status.plan, status.done
    lines = [
        ("job", f"{plan.name} ({plan.task}), {'finished' if status.is_finished else 'not finished'}"),
        ("output", status.output),
        ("shards", f"{done.shards:,} of {len(plan.shards):,} done"),
        ("rows", f"{status.records_done:,} of {plan.rows_total:,} done: {done.ok:,} ok, {failed_words(done)}"),
        *(("", f"{count:,} {reason}") for reason, count in done.failed_reasons.items()),
        ("tokens", token_words(done)),
    ]
    if submission := status.submission:
        lines.append(("runner", f"{where(submission)}; by {submission.submitted_by} at {submission.submitted_at}"))
    if (stopped := status.cancellation) and stopped.resumed_at is None and not status.is_finished:
        lines.append(("stopped", f"cancelled by {stopped.cancelled_by} at {stopped.cancelled_at}"))
    if status.busy_seconds:
        lines.append(("rate", f"{rate_words(done, status.busy_seconds)} over {duration(status.busy_seconds)}"))
    if status.prediction:
        lines += Comparison(status.prediction, done).lines()
    if not status.is_finished:
        lines += _who_is_at_it(status)
        lines += _what_is_left(status)
    return lines


def _who_is_at_it(status: Status) -> list[tuple[str, str]]:
    """A line for each worker. One that was killed stays here until its lease is taken over."""
    by_worker: dict[str, list[Lease]] = {}
    for lease in status.open_shards:
        by_worker.setdefault(lease.worker, []).append(lease)
    words = [
        f"{worker}: {'shard' if len(some) == 1 else 'shards'} {', '.join(str(lease.shard) for lease in some[:8])}"
        f"{' ...' if len(some) > 8 else ''}, since {min(lease.taken_at for lease in some)}"
        for worker, some in sorted(by_worker.items())
    ]
    shown = words[:_WORKERS_SHOWN] + ([f"{len(words) - _WORKERS_SHOWN} more"] if len(words) > _WORKERS_SHOWN else [])
    return [("open" if number == 0 else "", line) for number, line in enumerate(shown)]


def _what_is_left(status: Status) -> list[tuple[str, str]]:
    shards, rows = len(status.plan.shards) - status.done.shards, status.plan.rows_total - status.records_done
    time = ""
    if shards and status.seconds_left:
        time = f", about {duration(status.seconds_left)} at this rate"
    elif shards and status.prediction:
        time = f", about {duration(status.prediction.seconds)} as foreseen"
    left = (
        f"{count_words(shards, 'shard')}, {count_words(rows, 'row')}{time}" if shards else "to declare the job finished"
    )
    return [("left", left), ("resume", _resume(status))]


def _resume(status: Status) -> str:
    stored = join(status.output, STORED_NAME)
    verb = "submit" if status.submission else "run"
    return f"penstock {verb} {shlex.quote(stored)}" if exists(stored) else f"{verb} the same job again"
