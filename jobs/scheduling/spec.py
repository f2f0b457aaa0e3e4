"""The schedule file, field by field: which job, for which partitions of time, and what happens when things go wrong.

As with the job file, these models are the whole truth: the JSON schema, the reference page and the errors are made
from the descriptions here, and an unknown key is an error.
"""

from __future__ import annotations

import datetime
import re
from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import ConfigDict, Field, JsonValue

from jobs.scheduling.cron import Cron, time_zone
from jobs.section import Section
from pipeline.errors import JobError

_UNIT_SECONDS = {"s": 1, "min": 60, "h": 3600, "d": 86400}

Duration = Annotated[str, Field(pattern=r"^\d{1,6}(s|min|h|d)$", examples=["30min", "6h", "7d"])]
Moment = Annotated[
    str, Field(pattern=r"^\d{4}-\d{2}-\d{2}([T ]\d{2}:\d{2}(:\d{2})?)?$", examples=["2026-01-31", "2026-01-31T06:00"])
]
Occasion = Literal["failure", "late", "drift", "refused"]


def seconds_of(duration: str) -> int:
    """The length of `90s`, `30min`, `6h` or `7d`."""
    count, unit = re.fullmatch(r"(\d+)(s|min|h|d)", duration, re.ASCII).groups()  # type: ignore[union-attr]
    return int(count) * _UNIT_SECONDS[unit]


class Retries(Section):
    limit: Annotated[int, Field(ge=0, le=100)] = 2
    """How often a partition that failed is tried again. Counted in the output, so by all callers together; counted
    anew once its input or the job has changed."""
    backoff: Duration = "1min"
    """How long after the first failure; doubled after each further one."""
    longest: Duration = "15min"
    """The backoff grows no longer than this."""


class LateData(Section):
    watch: Duration | None = None
    """How far back finished partitions are looked at for input that came late or changed; by default as far as
    catch_up."""
    on_change: Literal["version", "refuse"] = "version"
    """Files of a finished partition changed: `version` scores the partition again, beside the first results;
    `refuse` leaves it and says so. Files that were only added are always scored, by themselves."""
    on_shrink: Literal["refuse", "version"] = "refuse"
    """A finished partition has lost files, or has fewer rows than before: `refuse` keeps its results and raises an
    alert; `version` scores what is left, beside the first results."""


class Alerts(Section):
    webhook_env: Annotated[str | None, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$", examples=["PENSTOCK_WEBHOOK"])] = None
    """Name of the environment variable that holds a URL; a JSON object is posted there, whose `text` Slack shows."""
    command: Annotated[tuple[str, ...] | None, Field(min_length=1, examples=[["notify", "--stdin"]])] = None
    """A command as a list of arguments; it gets the same JSON object on its standard input. No shell is involved."""
    on: Annotated[tuple[Occasion, ...], Field(min_length=1)] = ("failure", "late", "drift", "refused")
    """`failure`: a partition failed for the last time, or has too many failed rows. `late`: its input was not there
    when the delay was over. `drift`: its figures differ from those of the partitions before. `refused`: its input
    shrank or changed and late_data says to leave it. Each is said once for each partition."""

    def _contradictions(self) -> Iterator[tuple[str, str]]:
        if not self.webhook_env and not self.command:
            yield "webhook_env", "is missing: say how to alert, webhook_env or command"


class Schedule(Section):
    """A job that is run for every partition of an input that grows with time."""

    model_config = ConfigDict(title="Penstock schedule")

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$", examples=["hourly-scores"])]
    """What the schedule is called: letters, digits and . _ - Its output belongs to this name."""
    job: Annotated[str, Field(min_length=1, examples=["score.yaml"])]
    """The job file. It leaves input.path and output.path to the schedule."""
    set: dict[str, JsonValue] = {}  # noqa: RUF012
    """Fields of the job to replace, by dotted key, as `penstock run --set` does: {sampling.max_tokens: 32}"""
    cron: Annotated[str, Field(min_length=1, max_length=200, examples=["0 * * * *", "30 2 * * MON-FRI"])]
    """When partitions begin: minute, hour, day of month, month, day of week. A partition is the time from one such
    moment to the next, and is due when it is over."""
    timezone: Annotated[str, Field(min_length=1, examples=["UTC", "Europe/Berlin"])]
    """The IANA time zone of cron, start, end and of the fields in the templates."""
    input: Annotated[str, Field(min_length=1, max_length=2000, examples=["gs://in/dt={{ ds }}/*.parquet"])]
    """The rows of a partition: a path or glob with {{ ds }} and other fields; see docs/scheduling.md."""
    output: Annotated[str, Field(min_length=1, max_length=2000, examples=["gs://out/dt={{ ds }}"])]
    """Where the results of a partition go. What stands before the first field is the output of the schedule as a
    whole, and belongs to it alone."""
    start: Moment
    """The first partition is the first that begins at this moment or later."""
    end: Moment | None = None
    """No partition begins at this moment or later."""
    catch_up: Duration = "7d"
    """How far back a partition that was missed is still run. Older ones take `--from` and `--to`."""
    delay: Duration = "0s"
    """How long after its end a partition is left alone, so that its data can arrive."""
    concurrency: Annotated[int, Field(ge=1, le=32)] = 1
    """How many partitions one call runs at a time. They share one engine."""
    timeout: Duration | None = None
    """A partition that runs for longer is stopped and counts as failed; finished shards stay."""
    retries: Retries = Retries()
    """What happens after a failure."""
    late_data: LateData = LateData()
    """What happens when the input of a finished partition changes."""
    only_new_rows: bool = False
    """Score only rows whose content no earlier partition or version has scored. Needs input.id in the job."""
    alerts: Alerts | None = None
    """Who is told."""

    def _contradictions(self) -> Iterator[tuple[str, str]]:
        zone = None
        try:
            zone = time_zone(self.timezone)
        except JobError as error:
            yield "timezone", str(error)
        try:
            Cron(self.cron, zone or datetime.UTC)
        except JobError as error:
            yield "cron", str(error)
        moments = {}
        for field in ("start", "end"):
            try:
                moments[field] = datetime.datetime.fromisoformat(getattr(self, field) or "9999-12-31")
            except ValueError as error:
                yield field, f"is no date: {error}"
        if len(moments) == 2 and moments["start"] >= moments["end"]:
            yield "end", f"is {self.end}, not after start ({self.start}); no partition is between them"
        if self.only_new_rows and self.concurrency > 1:
            yield "concurrency", "is 1 with only_new_rows: what is new in a partition depends on those before it"
        for key in self.set:
            if key in ("input.path", "output.path"):
                yield "set", f"{key} is decided by the schedule's {key.partition('.')[0]}"

    @property
    def zone(self) -> datetime.tzinfo:
        return time_zone(self.timezone)

    @property
    def ticks(self) -> Cron:
        return Cron(self.cron, self.zone)

    def moment(self, text: str) -> datetime.datetime:
        """A date or time of the schedule's time zone."""
        return datetime.datetime.fromisoformat(text).replace(tzinfo=self.zone)
