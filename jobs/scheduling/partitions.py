"""Partitions of time, and where each has its input and its output.

A partition begins at a tick of the schedule's cron expression and ends at the next; it is known by its output below
the root of the schedule, such as `dt=2026-01-31/hour=05`. Templates are Jinja over a closed list of fields, all of
them in the schedule's time zone. What a template renders can never lead out of the directory that it spells out.
"""

from __future__ import annotations

import datetime
import functools
import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from jinja2.runtime import StrictUndefined

from jobs.scheduling.cron import Cron
from jobs.scheduling.spec import Schedule
from pipeline.errors import JobError, PromptError
from pipeline.sandbox import Sandbox, compile_template, render_template

FIELDS: Mapping[str, str] = {
    "ds": "day on which the partition begins: 2026-01-31",
    "ds_nodash": "the same as 20260131",
    "ts": "moment at which it begins: 2026-01-31T05:00:00+01:00",
    "ts_nodash": "the same in UTC, as 20260131T040000Z: no two partitions have the same",
    "year": "2026",
    "month": "01",
    "day": "31",
    "hour": "05",
    "minute": "00",
    "data_interval_start": "the moment itself: data_interval_start.strftime('%Y/%m/%d')",
    "data_interval_end": "the moment at which the partition ends and the next begins",
}
"""What a template may name, with an example of each. Names and meanings are Airflow's where it has them."""

_CONTROL = frozenset(map(chr, range(32)))
_DISTINCT_TICKS = 50
_CLOCK_DAYS = 800  # two years of clock changes from the start are looked at


@dataclass(frozen=True)
class Partition:
    """The time from `begin` to `stop`, and what the templates make of it."""

    begin: datetime.datetime
    stop: datetime.datetime
    key: str
    """Its output below the root: what the partition is called."""
    input: str
    output: str

    @property
    def begin_utc(self) -> datetime.datetime:
        return _utc(self.begin)


class PathTemplate:
    """A path with fields. `base` is what stands before the first field, up to the last slash."""

    def __init__(self, text: str, called: str, *, may_glob: bool) -> None:
        self.text, self.called, self._may_glob = text, called, may_glob
        literal = text[: min((text.find(mark) for mark in ("{{", "{%", "{#") if mark in text), default=len(text))]
        scheme, separator, rest = literal.rpartition("://")
        if separator and "/" not in rest:
            raise JobError(f"{called}: {text!r} has a field before the first directory; write the bucket out")
        self.base = f"{scheme}{separator}{rest.rpartition('/')[0] or ('/' if rest.startswith('/') else '.')}"
        try:
            self._template, self.names = compile_template(_sandbox(), text, called)
        except PromptError as error:
            raise JobError(str(error)) from error
        if unknown := sorted(self.names - FIELDS.keys()):
            raise JobError(f"{called}: there is no field {', '.join(unknown)}; there are {', '.join(FIELDS)}")

    def render(self, fields: Mapping[str, Any]) -> str:
        try:
            path = render_template(_sandbox(), self._template, fields, self.called)
        except PromptError as error:
            raise JobError(str(error)) from error
        prefix = {".": "", "/": "/"}.get(self.base, f"{self.base}/")
        if not path.startswith(prefix):
            raise JobError(f"{self.called}: {path!r} leads out of {self.base}")
        below = path[len(prefix) :]
        steps = below.split("/")
        if any(step in ("", ".", "..") for step in steps) or _CONTROL & set(path) or "://" in below or "\\" in below:
            raise JobError(f"{self.called}: {path!r} has an empty step, a step up or a strange character")
        if not self._may_glob:
            if found := sorted(set("*?[") & set(path)):
                raise JobError(f"{self.called}: {path!r} has {found[0]}; an output is one directory")
            if hidden := [step for step in steps if step.startswith(("_", "."))]:
                raise JobError(
                    f"{self.called}: readers skip {hidden[0]!r}; names that begin with _ or . are bookkeeping"
                )
        return path


@functools.cache
def _sandbox() -> Sandbox:
    return Sandbox(undefined=StrictUndefined, null_text=None, keep_trailing_newline=True)


class Partitions:
    """All partitions of a schedule."""

    def __init__(self, schedule: Schedule) -> None:
        self.schedule = schedule
        self._cron: Cron = schedule.ticks
        self._input = PathTemplate(schedule.input, "input", may_glob=True)
        self._output = PathTemplate(schedule.output, "output", may_glob=False)
        self.root = self._output.base
        self.begin = schedule.moment(schedule.start)
        self.end = schedule.moment(schedule.end) if schedule.end else None
        self._refuse_shared_outputs()

    @property
    def input_varies(self) -> bool:
        """Whether partitions have inputs of their own; else there is one for all, such as a dump that grows."""
        return bool(self._input.names)

    def between(self, first: datetime.datetime, stop: datetime.datetime) -> Iterator[Partition]:
        """The partitions that begin from `first`, which counts, to `stop`, which does not; oldest first."""
        for begin in self._cron.between(first, stop):
            yield self._partition(begin, next(self._cron.after(begin)))

    def after(self, moment: datetime.datetime) -> Iterator[Partition]:
        """The partitions that begin later than `moment`, without end, oldest first."""
        for begin, stop in itertools.pairwise(self._cron.after(moment)):
            yield self._partition(begin, stop)

    def ending_after(self, moment: datetime.datetime, until: datetime.datetime) -> Iterator[Partition]:
        """The partitions of the schedule that end later than `moment` and begin before `until`, oldest first."""
        tick = next(self._cron.after(moment))  # the partition that ends here began before `moment`
        first = max([self.begin, *self._ticks_before(tick, 1)], key=_utc)
        yield from self.between(first, min([until, *([self.end] if self.end else [])], key=_utc))

    def before(self, partition: Partition, count: int) -> list[Partition]:
        """The last `count` partitions of the schedule before one, oldest first."""
        begins = [*self._ticks_before(partition.begin, count), partition.begin]
        return [self._partition(a, b) for a, b in itertools.pairwise(begins) if _utc(a) >= _utc(self.begin)]

    def _ticks_before(self, tick: datetime.datetime, count: int) -> list[datetime.datetime]:
        """The last ticks before a tick, found by looking back further and further; there may be fewer."""
        ticks: list[datetime.datetime] = []
        for days in (1, 8, 32, 367, 1500, 15000):
            ticks = list(self._cron.between(_utc(tick) - datetime.timedelta(days=days), tick))
            if len(ticks) >= count:
                break
        return ticks[-count:]

    def _partition(self, begin: datetime.datetime, stop: datetime.datetime) -> Partition:
        fields = fields_of(begin, stop)
        output = self._output.render(fields)
        key = output if self.root == "." else output[len(self.root.rstrip("/")) + 1 :]
        return Partition(begin, stop, key, self._input.render(fields), output)

    def _refuse_shared_outputs(self) -> None:
        """No two partitions may have one output: not the first ones, and not those around a change of the clock."""
        stretches = [itertools.islice(self._cron.after(self.begin), _DISTINCT_TICKS)]
        stretches += [
            self._cron.between(change - datetime.timedelta(hours=4), change + datetime.timedelta(hours=4))
            for change in _set_back(self.begin)
        ]
        for ticks in stretches:
            taken: dict[str, datetime.datetime] = {}
            for begin, stop in itertools.pairwise(ticks):
                key = self._partition(begin, stop).key
                if key in taken:
                    raise JobError(self._shared(key, taken[key], begin))
                if taken and key.count("/") != next(iter(taken)).count("/"):
                    raise JobError(f"output: {key} and {next(iter(taken))} differ in depth; one could lie in the other")
                taken[key] = begin

    def _shared(self, key: str, one: datetime.datetime, other: datetime.datetime) -> str:
        both = f"the partitions of {one.isoformat()} and {other.isoformat()} would both have the output {key!r}"
        if not self._output.names:
            return f"output: {both}; write a field into it, such as dt={{{{ ds }}}}"
        if one.utcoffset() != other.utcoffset():
            return f"output: clocks are set back, and {both}; use timezone: UTC, or the field ts_nodash"
        return f"output: {both}; name them more finely, such as dt={{{{ ds }}}}/hour={{{{ hour }}}}"


def _utc(moment: datetime.datetime) -> datetime.datetime:
    return moment.astimezone(datetime.UTC)


def fields_of(begin: datetime.datetime, stop: datetime.datetime) -> dict[str, Any]:
    """The fields of the partition from `begin` to `stop`."""
    return {
        "ds": begin.strftime("%Y-%m-%d"),
        "ds_nodash": begin.strftime("%Y%m%d"),
        "ts": begin.isoformat(),
        "ts_nodash": begin.astimezone(datetime.UTC).strftime("%Y%m%dT%H%M%SZ"),
        "year": begin.strftime("%Y"),
        "month": begin.strftime("%m"),
        "day": begin.strftime("%d"),
        "hour": begin.strftime("%H"),
        "minute": begin.strftime("%M"),
        "data_interval_start": begin,
        "data_interval_end": stop,
    }


def _set_back(start: datetime.datetime) -> Iterator[datetime.datetime]:
    """The moments, within half a day, at which clocks are set back."""
    previous = start
    for _ in range(2 * _CLOCK_DAYS):
        following = (previous.astimezone(datetime.UTC) + datetime.timedelta(hours=12)).astimezone(start.tzinfo)
        before, after = previous.utcoffset(), following.utcoffset()
        if before is not None and after is not None and after < before:
            yield _exactly(previous, following)
        previous = following


def _exactly(low: datetime.datetime, high: datetime.datetime) -> datetime.datetime:
    """The minute at which the offset of the zone changes, between two moments with different ones."""
    zone, before = low.tzinfo, low.utcoffset()
    low, high = low.astimezone(datetime.UTC), high.astimezone(datetime.UTC)
    while high - low > datetime.timedelta(minutes=1):
        middle = low + (high - low) / 2
        low, high = (middle, high) if middle.astimezone(zone).utcoffset() == before else (low, middle)
    return high
