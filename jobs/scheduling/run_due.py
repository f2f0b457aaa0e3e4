"""`penstock run-due`: whatever is due and not done is run, oldest first; then the call ends, and nothing is remembered.

The call itself waits for retries whose time comes soon, and watches partitions that somebody else seems to run for as
long as it takes to see that they do. A partition that fails does not stop the others.
"""

from __future__ import annotations

import datetime
import logging
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field, replace

from jobs.scheduling import alerts, drift, due
from jobs.scheduling.alerts import Alert
from jobs.scheduling.due import Decision
from jobs.scheduling.partition_lease import PartitionLease
from jobs.scheduling.partition_run import HELD, OVER_LIMIT, How, Result, run_partition
from jobs.scheduling.partitions import Partition
from jobs.scheduling.schedule_file import Scheduled
from jobs.scheduling.spec import seconds_of
from jobs.scheduling.versions import Versions, claim, read_versions
from pipeline import activity, storage
from pipeline.errors import JobError, PenstockError
from schemas.documents import DocumentError
from schemas.manifest import SUMMARY_NAME, Summary

MOST_PARTITIONS = 100_000
LOOKS_AT_ONCE = 16
_POLL_SECONDS = 0.5

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Window:
    """Which partitions a call looks at."""

    partitions: Sequence[Partition]
    watched_from: datetime.datetime
    """Done partitions that were due earlier are not looked at again."""


def window(
    scheduled: Scheduled,
    now: datetime.datetime,
    first: datetime.datetime | None = None,
    stop: datetime.datetime | None = None,
) -> Window:
    """The partitions that are over by `now`, as far back as the schedule says; or, as a backfill, those that begin
    from `first`, which counts, to `stop`, which does not."""
    schedule, partitions = scheduled.schedule, scheduled.partitions
    if first or stop:
        begin = first or partitions.begin
        if stop and stop <= begin:
            raise JobError(f"--to {stop.isoformat()} is not after {begin.isoformat()}")
        found = partitions.between(begin, min(now, stop) if stop else now)
        return Window(_bounded(found, now), begin)
    delay = seconds_of(schedule.delay)
    watch = seconds_of(schedule.late_data.watch or schedule.catch_up)
    back = now - datetime.timedelta(seconds=delay + seconds_of(schedule.catch_up))
    watched = now - datetime.timedelta(seconds=delay + watch)
    return Window(_bounded(partitions.ending_after(min(back, watched), now), now), watched)


def _bounded(found: object, now: datetime.datetime) -> list[Partition]:
    partitions: list[Partition] = []
    for partition in found:  # type: ignore[attr-defined]
        if partition.stop > now:
            break
        partitions.append(partition)
        if len(partitions) > MOST_PARTITIONS:
            raise JobError(
                f"more than {MOST_PARTITIONS:,} partitions; say which with --from and --to, or a shorter catch_up"
            )
    return partitions


def decisions(scheduled: Scheduled, now: datetime.datetime, looked_at: Window) -> list[Decision]:
    """What is to be done about each partition. One that cannot be judged, such as for a damaged plan, has failed."""

    def decide(partition: Partition) -> Decision:
        watch = partition.stop > looked_at.watched_from
        try:
            return due.decide(scheduled, partition, now, watch=watch)
        except PenstockError as error:
            return Decision(partition, due.GAVE_UP, str(error), Versions(scheduled.root, partition.key, ()))

    with ThreadPoolExecutor(LOOKS_AT_ONCE) as pool:
        return list(pool.map(decide, looked_at.partitions))


@dataclass
class Call:
    """One call of run-due."""

    how: How
    report: Callable[[Result], None]
    wait_until: datetime.datetime | None = None
    """Partitions whose delay is over by this time are waited for."""
    results: dict[str, Result] = field(default_factory=dict)
    _summaries: dict[str, dict[str, float] | None] = field(default_factory=dict)

    def run(self, looked_at: Window) -> list[Result]:
        """Runs what is due; the result of every partition that was looked at, oldest first."""
        scheduled, how = self.how.scheduled, self.how
        claim(scheduled.root, scheduled.schedule.name, scheduled.schedule.output)
        ready: list[tuple[Partition, datetime.datetime | None, PartitionLease | None]] = []
        for decision in decisions(scheduled, how.clock(), looked_at):
            if self._is_waited_for(decision) or decision.state in (due.DUE, due.RETRY):
                ready.append((decision.partition, decision.not_before, None))
            else:
                self._note(Result(decision.partition, decision.state, decision.reason, decision))
        pool = ThreadPoolExecutor(scheduled.schedule.concurrency, thread_name_prefix="partition")
        running: dict[Future[Result], Partition] = {}
        try:
            while ready or running:
                for entry in [entry for entry in ready if self._is_time(*entry[:2])]:
                    if len(running) == scheduled.schedule.concurrency:
                        break
                    ready.remove(entry)
                    partition, _, seen = entry
                    watch = partition.stop > looked_at.watched_from
                    running[pool.submit(self._run, partition, watch, seen)] = partition
                if not running:
                    how.stopping.wait(_POLL_SECONDS)
                    continue
                finished, _ = wait(running, _POLL_SECONDS, return_when=FIRST_COMPLETED)
                for future in finished:
                    del running[future]
                    result = future.result()
                    if result.state == due.RETRY and result.decision:
                        ready.append((result.partition, result.decision.not_before, None))
                        self.report(result)
                    elif result.state == HELD and result.held and result.partition.key not in self.results:
                        self.results[result.partition.key] = result
                        ready.append((result.partition, None, result.held))
                    else:
                        self._note(result)
        except BaseException:
            how.stopping.set()
            while running:
                activity.cancel()  # again and again: a run that begins forgets it
                finished, _ = wait(running, 0.1)
                for future in finished:
                    self.report(future.result())
                    del running[future]
            raise
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
        return sorted(self.results.values(), key=lambda result: result.partition.begin_utc)

    def _is_waited_for(self, decision: Decision) -> bool:
        ready = due.due_at(self.how.scheduled, decision.partition)
        return decision.state == due.WAITING and self.wait_until is not None and ready <= self.wait_until

    def _is_time(self, partition: Partition, not_before: datetime.datetime | None) -> bool:
        """Whether its delay is over by the call's clock, and its backoff by the real one."""
        if not_before and not_before > datetime.datetime.now(datetime.UTC):
            return False
        return due.due_at(self.how.scheduled, partition) <= self.how.clock()

    def _run(self, partition: Partition, watch: bool, seen: PartitionLease | None) -> Result:
        try:
            return run_partition(self.how, partition, watch=watch, seen=seen)
        except PenstockError as error:
            return Result(partition, due.GAVE_UP, str(error))
        except Exception as error:  # of one partition; the others go on
            _log.exception("%s", partition.key)
            return Result(partition, due.GAVE_UP, f"{type(error).__name__}: {error}")

    def _note(self, result: Result) -> None:
        """Keeps a result, shows it and tells whom it concerns."""
        self.results[result.partition.key] = result
        self.report(result)
        about = result.decision.work.asked if result.decision and result.decision.work else result.reason
        if result.state == due.LATE:
            self._say("late", result, "")
        elif result.state in (due.GAVE_UP, OVER_LIMIT):
            self._say("failure", result, about)
        elif result.state == due.REFUSED:
            self._say("refused", result, result.reason)
        if result.state in (due.DONE, OVER_LIMIT) and result.decision and result.decision.state == due.DUE:
            self._look_for_drift(result)

    def _say(self, occasion: str, result: Result, about: str) -> None:
        alerts.send(self.how.scheduled, Alert(occasion, result.partition, result.reason, about))

    def _look_for_drift(self, result: Result) -> None:
        scheduled = self.how.scheduled
        if scheduled.schedule.alerts is None or "drift" not in scheduled.schedule.alerts.on:
            return
        try:
            self._summaries.pop(result.partition.key, None)
            now = self._figures(result.partition)
            past = scheduled.partitions.before(result.partition, drift.MOST_BEFORE)
            before = [figures for figures in map(self._figures, past) if figures is not None]
            found = drift.drifts(now, before) if now else []
        except PenstockError as error:
            _log.warning("%s: cannot be compared with the partitions before: %s", result.partition.key, error)
            return
        if found:
            alert = Alert("drift", result.partition, "; ".join(map(str, found)), ", ".join(d.figure for d in found))
            alerts.send(scheduled, alert)
            self.report(replace(result, state="drift", reason=alert.reason))

    def _figures(self, partition: Partition) -> dict[str, float] | None:
        if partition.key not in self._summaries:
            current = read_versions(self.how.scheduled.root, partition.key).current
            summaries = [read_summary(version.output) for version in current]
            self._summaries[partition.key] = drift.figures(summaries) if summaries else None
        return self._summaries[partition.key]


def read_summary(output: str) -> Summary:
    """What a finished output sums up to."""
    url = storage.join(output, SUMMARY_NAME)
    try:
        return Summary.from_json(storage.read_bytes(url))
    except (DocumentError, FileNotFoundError) as error:
        raise JobError(f"{url} cannot be used: {error}") from error
