"""How a schedule stands, from storage alone: its partitions as a table, and the files that hold their results now."""

from __future__ import annotations

import datetime
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from jobs.scheduling import due
from jobs.scheduling.attempts import read_attempts
from jobs.scheduling.due import Decision
from jobs.scheduling.partition_lease import is_held
from jobs.scheduling.run_due import Window, decisions, read_summary
from jobs.scheduling.schedule_file import Scheduled
from jobs.scheduling.versions import read_versions
from jobs.wording import printable
from pipeline import storage
from pipeline.errors import PenstockError
from schemas.manifest import Summary
from schemas.scheduling import RUNNING

if TYPE_CHECKING:
    from rich.table import Table


@dataclass(frozen=True)
class Standing:
    """How one partition stands."""

    decision: Decision
    summaries: Sequence[Summary]
    attempts: int
    is_running: bool

    @property
    def rows(self) -> int:
        return sum(summary.ok + summary.failed for summary in self.summaries)

    @property
    def failed_rows(self) -> int:
        return sum(summary.failed for summary in self.summaries)

    @property
    def versions(self) -> str:
        """The numbers of those that hold the results, of all that have begun."""
        current = [str(version.number) for version in self.decision.versions.current]
        begun = len(self.decision.versions.begun)
        return f"{'+'.join(current)} of {begun}" if begun > len(current) else "+".join(current)


def standings(scheduled: Scheduled, now: datetime.datetime, looked_at: Window) -> list[Standing]:
    """All partitions that are looked at, oldest first; nothing is written."""
    return [_standing(scheduled, decision) for decision in decisions(scheduled, now, looked_at)]


def _standing(scheduled: Scheduled, decision: Decision) -> Standing:
    summaries: list[Summary] = []
    attempts: list[str] = []
    try:
        summaries = [read_summary(version.output) for version in decision.versions.current]
        attempts = [attempt.state for attempt in read_attempts(scheduled.root, decision.partition)]
    except PenstockError:
        pass  # which is why the decision says what is wrong
    held = is_held(scheduled.root, None if scheduled.schedule.only_new_rows else decision.partition.key)
    return Standing(decision, summaries, len(attempts), held and attempts[-1:] == [RUNNING])


def table(found: Sequence[Standing]) -> Table:
    from rich.table import Table
    from rich.text import Text

    shown = Table()
    for name in ("partition", "state", "versions", "rows", "failed", "tries", ""):
        shown.add_column(name, justify="right" if name in ("rows", "failed", "tries") else "left")
    for standing in found:
        decision = standing.decision
        state = "running" if standing.is_running else decision.state
        shown.add_row(
            Text(decision.partition.key),
            state,
            standing.versions,
            f"{standing.rows:,}" if standing.summaries else "",
            f"{standing.failed_rows:,}" if standing.summaries else "",
            f"{standing.attempts}",
            Text("" if decision.state == due.DONE else printable(decision.reason)),
        )
    return shown


def summary_lines(scheduled: Scheduled, found: Sequence[Standing], now: datetime.datetime) -> Iterator[tuple[str, str]]:
    """What `penstock schedule status` prints below the table."""
    schedule = scheduled.schedule
    yield "schedule", f"{schedule.name}: {schedule.cron} ({schedule.timezone})"
    yield "output", scheduled.root
    states = [standing.decision.state for standing in found]
    counts = {state: states.count(state) for state in dict.fromkeys(states)}
    yield "states", ", ".join(f"{count:,} {state}" for state, count in counts.items()) or "no partition is over yet"
    upcoming = next_due(scheduled, now)
    yield "next", "none: the schedule is over" if upcoming is None else _next_words(scheduled, upcoming)


def _next_words(scheduled: Scheduled, upcoming: tuple[str, datetime.datetime]) -> str:
    key, moment = upcoming
    return f"{key}, due at {moment.astimezone(scheduled.schedule.zone).isoformat(timespec='minutes')}"


def next_due(scheduled: Scheduled, now: datetime.datetime) -> tuple[str, datetime.datetime] | None:
    """The next partition that comes due, and when; None when the schedule has ended."""
    partitions = scheduled.partitions
    long_ago = now - datetime.timedelta(seconds=scheduled.delay_seconds)
    far = max(now, partitions.begin) + datetime.timedelta(days=3700)
    for partition in partitions.ending_after(long_ago, far):
        if (ready := due.due_at(scheduled, partition)) > now:
            return partition.key, ready
    return None


def current_files(scheduled: Scheduled, looked_at: Window) -> Iterator[str]:
    """The files that hold the results of every done partition: each row once, of the newest versions."""
    for partition in looked_at.partitions:
        for version in read_versions(scheduled.root, partition.key).current:
            for name in storage.list_names(version.output):
                if name.startswith("part-") and name.endswith(".parquet"):
                    yield storage.join(version.output, name)
