"""How commands call run-due: what they print and what they return."""

from __future__ import annotations

import datetime
import sys
import time
from collections.abc import Callable, Sequence

from jobs.commands.exit_codes import DONE, REFUSED, TOO_MANY_FAILED
from jobs.scheduling import due
from jobs.scheduling.partition_run import OVER_LIMIT, How, Result
from jobs.scheduling.run_due import Call, Window
from jobs.scheduling.schedule_file import Scheduled
from jobs.scheduling.spec import seconds_of


def run_call(
    scheduled: Scheduled,
    now: datetime.datetime,
    looked_at: Window,
    flags: Sequence[str],
    report: Callable[[Result], None],
    wait: str | None = None,
) -> list[Result]:
    """Runs what is due of one schedule, and what comes due within `wait`. Progress is shown where one partition runs at
    a time. The clock is taken to read `now` at first, and goes on from there."""
    from rich.console import Console

    alone = scheduled.schedule.concurrency == 1
    console = Console(file=sys.__stderr__) if alone else None
    started = time.monotonic()
    how = How(scheduled, lambda: now + datetime.timedelta(seconds=time.monotonic() - started), flags, console)
    until = now + datetime.timedelta(seconds=seconds_of(wait) if wait else 0)
    return Call(how, report, until).run(looked_at)


def result_line(result: Result) -> None:
    """What became of a partition, unless it was done before."""
    if result.state != due.DONE or result.shards_computed or (result.decision and result.decision.state == due.DUE):
        print(f"{result.state:<10} {result.partition.key}  {result.reason}", flush=True)


def exit_code(results: Sequence[Result]) -> int:
    states = {result.state for result in results}
    if due.GAVE_UP in states:
        return REFUSED
    return TOO_MANY_FAILED if states & {due.REFUSED, OVER_LIMIT} else DONE
