"""When run-due is called, and how: what all targets have in common.

A partition is due when it is over and its delay has passed. Calls come at the schedule's own ticks, moved by the delay
where that only shifts the minute or the time of day; `--wait` covers the rest of the delay, where it cannot be moved
and in nights in which clocks change. With `every`, calls come at even intervals instead, whatever the time zone.
"""

from __future__ import annotations

import datetime
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass

from cronsim import CronSim

from jobs.scheduling.schedule_file import Scheduled
from jobs.scheduling.spec import seconds_of
from pipeline.errors import JobError

_EVERY = {1, 2, 3, 4, 5, 6, 10, 12, 15, 20, 30, 60}


@dataclass(frozen=True)
class Calling:
    """How a schedule is to be called. `command` starts penstock; `image` is a container that has it."""

    scheduled: Scheduled
    command: str = "penstock"
    every: str | None = None
    image: str | None = None

    @property
    def name(self) -> str:
        """A name that every target takes: DNS labels are the strictest."""
        name = re.sub(r"[^a-z0-9]+", "-", f"penstock-{self.scheduled.schedule.name}".lower())
        return name[:52].strip("-")  # a CronJob's jobs add eleven characters, of 63

    @property
    def arguments(self) -> list[str]:
        """What follows the command."""
        wait = [] if self.every or not seconds_of(self.scheduled.schedule.delay) else [
            "--wait", self.scheduled.schedule.delay,
        ]  # fmt: skip
        return ["run-due", self.scheduled.file, *wait]

    @property
    def line(self) -> str:
        """The whole call as a line of a shell."""
        return shlex.join([self.command, *self.arguments])

    @property
    def zone(self) -> str:
        return "UTC" if self.every else self.scheduled.schedule.timezone

    @property
    def fields(self) -> Fields:
        """When to call."""
        if self.every:
            minutes, rest = divmod(seconds_of(self.every), 60)
            if rest or minutes not in _EVERY:
                raise JobError(f"--every {self.every}: use a whole part of an hour, such as 10min, 30min or 1h")
            return Fields.of("0 * * * *" if minutes == 60 else f"*/{minutes} * * * *")
        cron = self.scheduled.schedule.ticks
        return Fields.of(" ".join(cron.fields)).moved(seconds_of(self.scheduled.schedule.delay) // 60)

    def require_image(self, target: str) -> str:
        if not self.image:
            raise JobError(f"--to {target} needs --image: a container image that has penstock")
        return self.image


@dataclass(frozen=True)
class Fields:
    """A cron expression as the values of its fields, which every target can be told. Sunday is 0."""

    minutes: Sequence[int]
    hours: Sequence[int]
    days: Sequence[int]
    months: Sequence[int]
    weekdays: Sequence[int]

    @classmethod
    def of(cls, expression: str) -> Fields:
        sim = CronSim(expression, datetime.datetime(2000, 1, 1))
        if any(not isinstance(day, int) or day < 0 for day in [*sim.days, *sim.weekdays]):
            raise JobError(
                f"cron: {expression!r} names last days or such, which other tools read otherwise; use --every"
            )
        weekdays = sorted({int(day) % 7 for day in sim.weekdays})  # type: ignore[arg-type]
        fields = cls(sorted(sim.minutes), sorted(sim.hours), sorted(sim.days), sorted(sim.months), weekdays)
        if len(fields.days) < 31 and len(fields.weekdays) < 7:
            raise JobError(
                f"cron: {expression!r} restricts days of the month and of the week, which tools combine differently;"
                " use --every"
            )
        return fields

    def moved(self, minutes: int) -> Fields:
        """The same moments, so many minutes later, where only minutes, or only times of the day, have to change; else
        as they are."""
        daily = len(self.days) == 31 and len(self.months) == 12 and len(self.weekdays) == 7
        if len(self.hours) == 24 and minutes < 60 and (daily or max(self.minutes) + minutes < 60):
            later = sorted((minute + minutes) % 60 for minute in self.minutes)
            return Fields(later, self.hours, self.days, self.months, self.weekdays)
        if len(self.hours) == 1 and len(self.minutes) == 1:
            hour, minute = divmod(60 * self.hours[0] + self.minutes[0] + minutes, 60)
            if hour < 24:
                return Fields([minute], [hour], self.days, self.months, self.weekdays)
        return self

    @property
    def expression(self) -> str:
        """As a cron expression of numbers, lists, ranges and stars."""
        whole = ((self.minutes, 60), (self.hours, 24), (self.days, 31), (self.months, 12), (self.weekdays, 7))
        return " ".join("*" if len(values) == full else _listed(values, "-", ",") for values, full in whole)

    def text(self, values: Sequence[int], full: int) -> str:
        """A field as systemd writes it."""
        return "*" if len(values) == full else _listed(values, "..", ",")


def _listed(values: Sequence[int], to: str, comma: str) -> str:
    """Numbers, with runs of three or more as ranges: 1-5,7."""
    runs: list[list[int]] = []
    for value in values:
        if runs and value == runs[-1][-1] + 1:
            runs[-1].append(value)
        else:
            runs.append([value])
    texts = []
    for run in runs:
        texts += [f"{run[0]}{to}{run[-1]}"] if len(run) > 2 else map(str, run)
    return comma.join(texts)
