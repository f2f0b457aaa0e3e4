"""`penstock schedule serve`: run-due in a loop, for a laptop or a small machine that has nothing else to keep time.

It sleeps until the next partition is due, or for `look_seconds` at most, since late input announces itself to nobody.
Schedule files are read anew each time. An error is said and survived; SIGTERM and Ctrl-C end the loop, and finished
shards stay.
"""

from __future__ import annotations

import datetime
import functools
import threading
from collections.abc import Callable, Sequence

from jobs.scheduling.calling import run_call
from jobs.scheduling.due import DONE, DUE
from jobs.scheduling.partition_run import Result
from jobs.scheduling.run_due import window
from jobs.scheduling.schedule_file import Scheduled, load_all
from jobs.scheduling.state import next_due

LOOK_SECONDS = 300.0


def serve(
    paths: Sequence[str],
    say: Callable[[str], None],
    *,
    flags: Sequence[str] = (),
    look_seconds: float = LOOK_SECONDS,
    ended: threading.Event | None = None,
) -> None:
    """Runs until it is interrupted, or `ended` is set. The files must be right at the start."""
    ended = ended or threading.Event()
    schedules = load_all(paths)
    for scheduled in schedules:
        say(
            f"{scheduled.schedule.name}: {scheduled.schedule.cron} ({scheduled.schedule.timezone}), to {scheduled.root}"
        )
    while not ended.is_set():
        try:
            schedules = load_all(paths)
        except Exception as error:
            say(f"error: {error}; going on with the schedules as they were")
        for scheduled in schedules:
            try:
                now = datetime.datetime.now(datetime.UTC)
                run_call(scheduled, now, window(scheduled, now), flags, functools.partial(_say, say, scheduled))
            except Exception as error:
                say(f"{scheduled.schedule.name}: error: {error}")
        seconds = _until_next(schedules, look_seconds)
        ended.wait(seconds)


def _say(say: Callable[[str], None], scheduled: Scheduled, result: Result) -> None:
    if result.state != DONE or (result.decision and result.decision.state == DUE):
        say(f"{scheduled.schedule.name}: {result.state} {result.partition.key}: {result.reason}")


def _until_next(schedules: Sequence[Scheduled], most_seconds: float) -> float:
    now = datetime.datetime.now(datetime.UTC)
    upcoming = [found[1] for scheduled in schedules if (found := next_due(scheduled, now))]
    return max(0.0, min([most_seconds, *((moment - now).total_seconds() for moment in upcoming)]))
