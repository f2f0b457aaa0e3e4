"""Cron expressions in a time zone, by cronsim, which does what Debian's cron does when clocks change.

An expression that names its hours (`30 2 * * *`) runs once a day: in a night without 02:30 at the first moment after
the gap, in a night with two of them at the first. One that leaves hour or minute open (`0 * * * *`, `*/15 3 * * *`)
follows the clock on the wall through gaps and repetitions, so every real hour of the year has a tick.

Moments are compared in UTC: two of them in one zone, an hour apart in reality, may read the same.
"""

from __future__ import annotations

import datetime
import zoneinfo
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import takewhile

from cronsim import CronSim, CronSimError

from pipeline.errors import JobError

FIELDS = ("minute", "hour", "day of month", "month", "day of week")
_ALIASES = {
    "@hourly": "0 * * * *",
    "@daily": "0 0 * * *",
    "@weekly": "0 0 * * 0",
    "@monthly": "0 0 1 * *",
    "@yearly": "0 0 1 1 *",
}
_RANGES = ("0-59", "0-23", "1-31", "1-12 or JAN-DEC", "0-7 or SUN-SAT")
_SAFE_FIELD = ("*", "*", "*", "*", "*")


def time_zone(name: str) -> datetime.tzinfo:
    """The IANA time zone of that name."""
    if name == "UTC":
        return datetime.UTC
    try:
        return zoneinfo.ZoneInfo(name)
    except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError) as error:
        raise JobError(
            f"{name!r} is no time zone that this machine knows; use an IANA name such as UTC or Europe/Berlin"
        ) from error


@dataclass(frozen=True)
class Cron:
    """The ticks of a cron expression with five fields. A day of month AND a day of week must both match if either
    begins with a star, else one of them must, as in cron."""

    expression: str
    zone: datetime.tzinfo

    def __post_init__(self) -> None:
        fields = self.fields
        if len(fields) != len(FIELDS):
            names = ", ".join(FIELDS)
            raise JobError(f"{self.expression!r} has {len(fields)} fields; write five: {names}")
        for index, (name, text) in enumerate(zip(FIELDS, fields, strict=True)):
            alone = " ".join([*_SAFE_FIELD[:index], text, *_SAFE_FIELD[index + 1 :]])
            try:
                CronSim(alone, datetime.datetime(2000, 1, 1))
            except (CronSimError, AssertionError, ValueError, RecursionError) as error:
                raise JobError(f"{text!r} is no {name}; it is {_RANGES[index]}, *, lists and steps") from error
        try:
            next(CronSim(" ".join(fields), datetime.datetime(2000, 1, 1)))
        except (CronSimError, StopIteration) as error:
            raise JobError(f"{self.expression!r} never comes: no month it names has such a day") from error

    @property
    def fields(self) -> list[str]:
        return _ALIASES.get(self.expression.strip().lower(), self.expression).split()

    def after(self, moment: datetime.datetime) -> Iterator[datetime.datetime]:
        """The ticks later than `moment`, in order, in the schedule's zone."""
        for tick in CronSim(" ".join(self.fields), moment.astimezone(self.zone)):
            if _utc(tick) > _utc(moment):  # cronsim reads 02:15, the second time it is 02:15, as the first
                yield tick.astimezone(self.zone)

    def between(self, first: datetime.datetime, stop: datetime.datetime) -> Iterator[datetime.datetime]:
        """The ticks from `first`, which counts, to `stop`, which does not."""
        ticks = self.after(_utc(first) - datetime.timedelta(seconds=1))
        yield from takewhile(lambda tick: _utc(tick) < _utc(stop), ticks)


def _utc(moment: datetime.datetime) -> datetime.datetime:
    return moment.astimezone(datetime.UTC)
