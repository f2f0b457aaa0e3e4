"""What is to be done about a partition, from its versions, its attempts, its input and the time: a decision.

Nothing is remembered between calls; everything is read from storage, so whoever asks next, anywhere, decides the same.
"""

from __future__ import annotations

import datetime
from dataclasses import dataclass
from typing import Any

from jobs.scheduling import attempts as tries
from jobs.scheduling.partitions import Partition
from jobs.scheduling.schedule_file import Scheduled
from jobs.scheduling.versions import Version, Versions, covered, difference, plans_of, read_versions
from jobs.spec import Job
from jobs.wording import count_words
from pipeline.errors import MissingFile
from pipeline.records import content_hash
from pipeline.sources import Source, open_source
from pipeline.workplan import identify, read_plan
from schemas.manifest import InputFile

WAITING, LATE, DUE, RETRY, GAVE_UP, REFUSED, DONE = "waiting", "late", "due", "retry", "failed", "refused", "done"
"""`waiting`: its time or its delay is not over. `late`: they are, and there is no input. `due`: to be run now. `retry`:
to be run again, later. `failed`: too often. `refused`: its input shrank or changed and is left. `done`."""


@dataclass(frozen=True)
class Work:
    """A version to be computed, over all files of the input or some."""

    version: Version
    files: frozenset[str] | None
    """None: all that are there, new ones included."""
    asked: str
    rows_before: int | None = None
    """Rows of the versions that it replaces."""


@dataclass(frozen=True)
class Decision:
    partition: Partition
    state: str
    reason: str
    versions: Versions
    work: Work | None = None
    not_before: datetime.datetime | None = None


def due_at(scheduled: Scheduled, partition: Partition) -> datetime.datetime:
    """When a partition is over, and its delay."""
    return partition.stop.astimezone(datetime.UTC) + datetime.timedelta(seconds=scheduled.delay_seconds)


def decide(scheduled: Scheduled, partition: Partition, now: datetime.datetime, *, watch: bool = True) -> Decision:
    """What to do about a partition at the time `now`. Its input is not looked at again, once it is done, unless
    `watch`."""
    versions = read_versions(scheduled.root, partition.key)
    attempts = tries.read_attempts(scheduled.root, partition)
    said = _Said(partition, versions)
    if now < (ready := due_at(scheduled, partition)):
        return said.decision(WAITING, f"due at {_at(ready, scheduled)}")
    watch = watch and scheduled.partitions.input_varies  # what comes to an input of all belongs to the next partition
    if versions.base and not versions.unfinished and not watch:
        return said.decision(DONE, "done")
    job = scheduled.job(partition, partition.output)
    try:
        found = identify(open_input(job))
    except MissingFile:
        if versions.base:
            return said.decision(REFUSED, f"shrank: all of its input is gone: {partition.input}")
        return said.decision(LATE, f"no input yet: {partition.input}")
    wanted = _wanted(scheduled, versions, found)
    if wanted is None:
        return said.decision(DONE, "done")
    version, files, reason = wanted
    if version is None:
        return said.decision(REFUSED, reason)
    used = [file for file in found if files is None or file.url in files]
    work = Work(version, files, _asked(job, used), _rows(versions) if _replaces(version) else None)
    if scheduled.schedule.late_data.on_shrink == "refuse" and (
        why := tries.refusal(attempts, version.number, work.asked)
    ):
        return said.decision(REFUSED, why, work)
    verdict = tries.judge(attempts, version.number, work.asked, scheduled.schedule.retries)
    times = count_words(verdict.failures, "time")
    if verdict.failures and not verdict.may_retry:
        return said.decision(GAVE_UP, f"failed {times}: {verdict.error}", work)
    if verdict.not_before and verdict.not_before > datetime.datetime.now(datetime.UTC):
        again = f"failed, again at {_at(verdict.not_before, scheduled)}: {verdict.error}"
        return said.decision(RETRY, again, work, verdict.not_before)
    return said.decision(DUE, f"{reason}, failed {times}" if verdict.failures else reason, work)


def open_input(job: Job) -> Source:
    """All of the input of a partition."""
    return open_source(path=job.input.path, format=job.input.file_format)


def _wanted(
    scheduled: Scheduled, versions: Versions, found: tuple[InputFile, ...]
) -> tuple[Version | None, frozenset[str] | None, str] | None:
    """The version to compute, over which files, and why; None when nothing is to be done, no version when it is not to
    be done."""
    if not versions.begun:
        return versions.first(), None, "missing"
    if unfinished := versions.unfinished:
        planned = read_plan(unfinished.output).inputs
        since = difference(planned, found)
        if not (since.changed or since.removed):
            return unfinished, frozenset(file.url for file in planned), "not finished"
        return versions.replacement(), None, f"not finished, and then {since}"
    only_new = scheduled.schedule.only_new_rows
    since = difference(covered(plans_of(versions.current), last_alone=only_new).values(), found)
    late = scheduled.schedule.late_data
    if since.removed and late.on_shrink == "refuse":
        return None, None, f"shrank: {since}"
    if since.changed and late.on_change == "refuse":
        return None, None, f"changed: {since}"
    if not since:
        return None
    if only_new:
        return versions.addition(), None, str(since)
    if since.changed or since.removed:
        return versions.replacement(), None, str(since)
    return versions.addition(), since.added, str(since)


def _replaces(version: Version) -> bool:
    return not version.is_addition and version.number > 1


def _rows(versions: Versions) -> int | None:
    return sum(plan.rows_total for plan in plans_of(versions.current)) if versions.base else None


def _asked(job: Job, files: list[InputFile]) -> str:
    """What is tried: once the input or the job is another, failures of before do not count."""
    settings: dict[str, Any] = job.model_dump(mode="json", exclude={"runner", "limits"})
    return content_hash({"job": settings, "files": [[file.url, file.size_bytes, file.etag] for file in files]})


def _at(moment: datetime.datetime, scheduled: Scheduled) -> str:
    return moment.astimezone(scheduled.schedule.zone).isoformat(timespec="seconds")


@dataclass(frozen=True)
class _Said:
    partition: Partition
    versions: Versions

    def decision(
        self, state: str, reason: str, work: Work | None = None, not_before: datetime.datetime | None = None
    ) -> Decision:
        return Decision(self.partition, state, reason, self.versions, work, not_before)
