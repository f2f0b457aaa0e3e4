"""A job file and its overrides become a Job, or an error that lists everything wrong with them.

Relative paths in the file, and in overrides, start at the file's own directory, so a job means the same from
anywhere.
"""

from __future__ import annotations

import json
import os
import posixpath
from collections.abc import Mapping, Sequence
from pathlib import Path as LocalPath
from typing import Any

from pydantic import ValidationError

from jobs.document import LIMIT_BYTES, Path, parse
from jobs.spec import Job
from jobs.spec_errors import dotted, explain
from pipeline.errors import JobError
from pipeline.storage import join, publish_over, read_bytes

STORED_NAME = "_job.json"
"""The job as it was last run, in its output."""


def load(path: str, overrides: Sequence[str] = ()) -> Job:
    """The job in the YAML file at `path`, with `key.subkey=value` overrides, its paths made absolute."""
    document = parse(read_text(path), source=path)
    values = document.values
    origins = {place: f"{path}:{line}" for place, line in document.lines.items()}
    if not isinstance(values, dict):
        raise JobError(
            f"{path}: a job file is a mapping of name, task, model, input, output ...; see `penstock schema`"
        )
    for override in overrides:
        _apply(override, values, origins)
    try:
        job = Job.model_validate_json(json.dumps(values))
    except ValidationError as error:
        problems = explain(error, values, origins)
        raise JobError(problems[0] if len(problems) == 1 else "\n  ".join(["the job has errors", *problems])) from error
    return with_absolute_paths(job, directory_of(path))


def directory_of(path: str) -> str:
    """Where relative paths in a file start."""
    return posixpath.dirname(path) if "://" in path else os.path.dirname(os.path.abspath(path))


def store(job: Job, output: str) -> None:
    """Leaves the job in its output, overrides and all, as a job file that goes on where a run stops."""
    text = json.dumps(_said(job), indent=2, ensure_ascii=False)
    publish_over(join(output, STORED_NAME), f"{text}\n".encode())


def with_engine(job: Job, values: Mapping[str, Any], source: str) -> Job:
    """The job as though its engine section said these fields; JobError, naming `source`, where it may not."""
    said = _said(job)
    said["engine"] = said.get("engine", {}) | dict(values)
    try:
        return Job.model_validate_json(json.dumps(said))
    except ValidationError as error:
        raise JobError("; ".join(explain(error, said, {(): source}))) from error


def _said(job: Job) -> dict[str, Any]:
    """The job as JSON, without what it leaves to defaults."""
    return job.model_dump(mode="json", exclude_unset=True, exclude_none=True)


def with_absolute_paths(job: Job, base: str) -> Job:
    """The job as though it had been written without relative paths, `base` being where they start."""

    def absolute(path: str | None) -> str | None:
        if path is None or "://" in path:
            return path
        path = os.path.expanduser(path)
        return posixpath.normpath(path) if os.path.isabs(path) else _join(base, path)

    kept = job.engine.compile_cache
    return job.model_copy(
        update={
            "engine": job.engine.model_copy(
                update={"compile_cache": kept if kept in ("auto", "off") else absolute(kept)}
            ),
            "model": job.model.model_copy(update={"checkpoint": absolute(job.model.checkpoint)}),
            "input": job.input.model_copy(
                update={"path": absolute(job.input.path), "data_dir": absolute(job.input.data_dir)}
            ),
            "output": job.output.model_copy(update={"path": absolute(job.output.path)}),
        }
    )


def _join(base: str, path: str) -> str:
    scheme, separator, rest = base.rpartition("://")
    return f"{scheme}{separator}{posixpath.normpath(posixpath.join(rest, path))}"


def read_text(path: str, called: str = "job file") -> str:
    """The text of a job file, or of another that is written alike."""
    try:
        if "://" in path:
            data = read_bytes(path, limit_bytes=LIMIT_BYTES)
        else:
            with LocalPath(path).open("rb") as file:
                data = file.read(LIMIT_BYTES + 1)
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise JobError(f"{path} is not UTF-8 text: {error.reason} at byte {error.start}") from error
    except OSError as error:
        raise JobError(f"cannot read the {called} {path}: {error.strerror or error}") from error


def _apply(override: str, values: dict[str, Any], origins: dict[Path, str]) -> None:
    """Sets one dotted key, making the mappings on the way that are missing."""
    name, equals, text = override.partition("=")
    if not (equals and name):
        raise JobError(f"--set {override}: write it as key=value, such as --set sampling.max_tokens=32")
    place: Any = values
    path: Path = ()
    *parents, last = name.split(".")
    for step in parents:
        key = _key(place, step, path, override)
        if isinstance(place, dict) and place.get(step) is None:
            place[step] = {}
            origins[*path, key] = "--set"
        place = place[key]
        path = (*path, key)
    key = _key(place, last, path, override)
    place[key] = parse(text, source=f"--set {name}").values
    path = (*path, key)
    for below in [other for other in origins if other[: len(path)] == path]:
        del origins[below]
    origins[path] = "--set"


def _key(place: Any, step: str, path: Path, override: str) -> str | int:
    """How `step` is looked up in `place`: by name in a mapping, by position in a list."""
    if isinstance(place, dict):
        return step
    if isinstance(place, list) and step.isdecimal() and int(step) < len(place):
        return int(step)
    raise JobError(f"--set {override}: {dotted(path)} is {place!r:.60}, which has no {step!r}")
