"""A schedule file becomes a schedule and its partitions, or an error that lists everything wrong with it.

Relative paths start at the schedule file's own directory.
"""

from __future__ import annotations

import json
import os
import posixpath
from collections.abc import Sequence
from dataclasses import dataclass

from pydantic import ValidationError

from jobs import job_file
from jobs.document import parse
from jobs.scheduling.partitions import Partition, Partitions
from jobs.scheduling.spec import Schedule, seconds_of
from jobs.spec import Job
from jobs.spec_errors import explain
from pipeline.errors import JobError

PINNED = {("input", "path"): "input", ("input", "tfds"): "input", ("output", "path"): "output"}
"""Fields of a job that the schedule decides, and the field of the schedule that does."""


@dataclass(frozen=True)
class Scheduled:
    """A schedule, where it was read, and what follows from it."""

    file: str
    schedule: Schedule
    partitions: Partitions

    @property
    def root(self) -> str:
        """The output of the schedule as a whole."""
        return self.partitions.root

    @property
    def delay_seconds(self) -> int:
        return seconds_of(self.schedule.delay)

    def job(self, partition: Partition, output: str) -> Job:
        """The job of one partition, with its results in `output`."""
        fields = {**self.schedule.set, "input.path": partition.input, "output.path": output}
        overrides = [f"{key}={json.dumps(value)}" for key, value in fields.items()]
        job = job_file.load(self.schedule.job, overrides)
        if self.schedule.only_new_rows and not job.input.id_column:
            raise JobError(
                f"{self.file}: only_new_rows needs input.id in {self.schedule.job}: a row that moves must stay the same"
            )
        return job


def load(path: str) -> Scheduled:
    """The schedule in the YAML file at `path`, its job file looked at and its templates tried."""
    document = parse(job_file.read_text(path, "schedule file"), source=path)
    origins = {place: f"{path}:{line}" for place, line in document.lines.items()}
    if not isinstance(document.values, dict):
        raise JobError(f"{path}: a schedule is a mapping of name, job, cron, timezone, input, output, start ...")
    try:
        schedule = Schedule.model_validate_json(json.dumps(document.values))
    except ValidationError as error:
        problems = explain(error, document.values, origins, Schedule, "schedule")
        raise JobError(
            problems[0] if len(problems) == 1 else "\n  ".join(["the schedule has errors", *problems])
        ) from error
    base = job_file.directory_of(path)
    paths = {field: _absolute(base, getattr(schedule, field)) for field in ("job", "input", "output")}
    schedule = schedule.model_copy(update=paths)
    try:
        partitions = Partitions(schedule)
    except JobError as error:
        field = str(error).partition(":")[0]
        raise JobError(f"{origins.get((field,), path)}: {error}") from error
    scheduled = Scheduled(path if "://" in path else os.path.abspath(path), schedule, partitions)
    _refuse_pinned(schedule)
    first = next(partitions.after(partitions.begin))
    job = scheduled.job(first, first.output)  # the job file with these overrides is right
    if posixpath.dirname(job.input.path or "") == job.output.path or job.input.path == job.output.path:
        raise JobError(f"{path}: output: {first.output} is where the input is; give the results a place of their own")
    return scheduled


def load_all(paths: Sequence[str]) -> list[Scheduled]:
    """Several schedules, no two of which write to one place."""
    loaded = [load(path) for path in paths]
    for index, one in enumerate(loaded):
        for other in loaded[:index]:
            inner, outer = sorted((f"{one.root}/", f"{other.root}/"), key=len, reverse=True)
            if inner.startswith(outer):
                raise JobError(
                    f"{other.file} and {one.file} both write below {min(one.root, other.root, key=len)};"
                    " give each schedule an output of its own"
                )
    return loaded


def _refuse_pinned(schedule: Schedule) -> None:
    document = parse(job_file.read_text(schedule.job), source=schedule.job)
    for (section, field), ours in PINNED.items():
        values = document.values.get(section) if isinstance(document.values, dict) else None
        if isinstance(values, dict) and values.get(field) is not None:
            line = document.lines.get((section, field), 1)
            raise JobError(
                f"{schedule.job}:{line}: {section}.{field} is given, and so is {ours} in the schedule, which decides"
                " it for every partition; leave it out of the job file"
            )


def _absolute(base: str, path: str) -> str:
    """A path, which may be a template, as though it had been written without a relative beginning."""
    if "://" in path.partition("{")[0]:
        return path
    directory, separator, rest = path.partition("{")
    directory, slash, name = directory.rpartition("/")
    directory = os.path.expanduser(directory + slash)
    if not os.path.isabs(directory):
        scheme, mark, below = base.rpartition("://")
        return f"{scheme}{mark}{posixpath.normpath(posixpath.join(below, directory))}/{name}{separator}{rest}"
    return f"{posixpath.normpath(directory).rstrip('/')}/{name}{separator}{rest}"
