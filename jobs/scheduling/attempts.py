"""Attempts at a partition, written down where its results are: whoever calls next knows how often it was tried."""

from __future__ import annotations

import dataclasses
import datetime
from collections.abc import Sequence
from dataclasses import dataclass

from jobs.scheduling.partitions import Partition
from jobs.scheduling.spec import Retries, seconds_of
from pipeline import storage
from pipeline.errors import JobError, OutputError
from schemas.documents import DocumentError
from schemas.scheduling import ATTEMPTS_NAME, FAILED, REFUSED, RUNNING, Attempt, attempt_name, numbered

LONGEST_ERROR = 2000


def read_attempts(root: str, partition: Partition) -> list[Attempt]:
    """All attempts at a partition, oldest first. Those of another partition mean that two share one output."""
    directory = storage.join(root, ATTEMPTS_NAME, partition.key)
    found = []
    for name in storage.list_names(directory):
        if numbered("", name):
            url = storage.join(directory, name)
            try:
                found.append(Attempt.from_json(storage.read_bytes(url, limit_bytes=2**20)))
            except DocumentError as error:
                raise OutputError(f"{url} cannot be used: {error}") from error
    for attempt in found:
        if attempt.begin != begin_text(partition):
            raise JobError(
                f"output: {partition.key} holds the partition of {attempt.begin}, and {begin_text(partition)} would"
                " have the same output; name partitions more finely, such as dt={{ ds }}"
            )
    return found


def begin_text(partition: Partition) -> str:
    return partition.begin_utc.isoformat(timespec="seconds")


@dataclass(frozen=True)
class Record:
    """The attempt that is being made: written before it starts, and again when it ends."""

    url: str
    attempt: Attempt

    @classmethod
    def begin(cls, root: str, partition: Partition, version: int, asked: str, holder: str) -> Record:
        directory = storage.join(root, ATTEMPTS_NAME, partition.key)
        attempt = Attempt(
            begin=begin_text(partition),
            of_version=version,
            asked=asked,
            holder=holder,
            state=RUNNING,
            started_at=_now(),
            ended_at=None,
            shards_computed=0,
            error=None,
        )
        number = 1 + max((numbered("", name) or 0 for name in storage.list_names(directory)), default=0)
        while not storage.publish_if_absent(url := storage.join(directory, attempt_name(number)), attempt.to_json()):
            number += 1
        return cls(url, attempt)

    def end(self, state: str, *, shards_computed: int = 0, error: str | None = None) -> None:
        ended = dataclasses.replace(
            self.attempt,
            state=state,
            ended_at=_now(),
            shards_computed=shards_computed,
            error=error[:LONGEST_ERROR] if error else None,
        )
        storage.publish_over(self.url, ended.to_json())


@dataclass(frozen=True)
class Verdict:
    """Whether a version may be tried: at once, at a later time, or no more."""

    failures: int
    may_retry: bool
    not_before: datetime.datetime | None
    error: str | None


def judge(attempts: Sequence[Attempt], version: int, asked: str, retries: Retries) -> Verdict:
    """What the attempts at the same thing say. Asked for now: the caller has the lease, so what still says `running`
    broke off. How long to wait is counted from a time that another machine may have written: a wrong clock shifts a
    retry, and nothing else."""
    failures = [
        attempt
        for attempt in attempts
        if attempt.of_version == version and attempt.asked == asked and attempt.state in (FAILED, RUNNING)
    ]
    if not failures:
        return Verdict(0, True, None, None)
    last = failures[-1]
    wait = min(seconds_of(retries.backoff) * 2 ** min(len(failures) - 1, 40), seconds_of(retries.longest))
    ended = datetime.datetime.fromisoformat(last.ended_at or last.started_at)
    return Verdict(
        failures=len(failures),
        may_retry=len(failures) <= retries.limit,
        not_before=ended + datetime.timedelta(seconds=wait),
        error=last.error or "it broke off",
    )


def refusal(attempts: Sequence[Attempt], version: int, asked: str) -> str | None:
    """Why an earlier attempt at the same thing found that it is not to be scored."""
    same = [attempt for attempt in attempts if (attempt.of_version, attempt.asked) == (version, asked)]
    return same[-1].error if same and same[-1].state == REFUSED else None


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")
