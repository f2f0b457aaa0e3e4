"""Times on the command line: a date or a time in the schedule's zone, or with an offset of its own."""

from __future__ import annotations

import datetime

from jobs.scheduling.schedule_file import Scheduled
from pipeline.errors import JobError


def moment(text: str | None, scheduled: Scheduled) -> datetime.datetime | None:
    """`2026-01-31`, `2026-01-31T06:00` or `2026-01-31T06:00+01:00`."""
    if text is None:
        return None
    try:
        read = datetime.datetime.fromisoformat(text)
    except ValueError as error:
        raise JobError(f"{text!r} is no time; write it as 2026-01-31 or 2026-01-31T06:00") from error
    return read if read.tzinfo else read.replace(tzinfo=scheduled.schedule.zone)


def now_or(text: str | None, scheduled: Scheduled) -> datetime.datetime:
    """The time it is taken to be."""
    return moment(text, scheduled) or datetime.datetime.now(datetime.UTC)
