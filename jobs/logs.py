"""What the command logs, as lines for people or, with `--log-format json`, as one JSON object a line.

    {"time": "2026-01-31T12:00:00.123Z", "level": "WARNING", "logger": "pipeline.storage", "message": "...",
     "run": "5f2b9c01d4e7", "shard": 7, "exception": "Traceback ..."}

`run` is the same for all lines of a process; `shard` is there when the line is about one. With json everything on the
standard error is such an object, also what is said there without a logger (progress, errors, notes). Secrets that
others put into messages (tokens, signatures and passwords in URLs and headers) are blotted out in both forms.
"""

from __future__ import annotations

import contextlib
import datetime
import io
import json
import logging
import sys
import uuid
from collections.abc import Iterator, Mapping
from typing import TextIO

FORMATS = ("text", "json")
_ROOMS = ("engine", "pipeline", "jobs")
_SAID = "jobs.said"
"""The logger of what is printed on the standard error."""


def blotted(text: str) -> str:
    """`text` without passwords, tokens and signatures."""
    from pipeline.urls import without_secrets  # the command answers without it where nothing is logged

    return without_secrets(text)


@contextlib.contextmanager
def logging_to_stderr(form: str, *, verbose: bool) -> Iterator[None]:
    """Sets up the logging of a command, and takes it down again.

    Quiet: our own warnings; others raise their errors besides logging them. Verbose: what everybody has to say.
    """
    stream = sys.stderr
    handler = logging.StreamHandler(stream)
    handler.setFormatter(_Json() if form == "json" else _Text())
    root = logging.getLogger()
    root.addHandler(handler)
    levels = {root: logging.INFO if verbose else logging.CRITICAL, logging.getLogger(_SAID): logging.INFO}
    levels |= {logging.getLogger(room): logging.INFO if verbose else logging.WARNING for room in _ROOMS}
    before = {logger: logger.level for logger in levels}
    _set(levels)
    said = _Lines()
    try:
        with contextlib.redirect_stderr(said) if form == "json" else contextlib.nullcontext():
            yield
    finally:
        said.end()
        root.removeHandler(handler)
        _set(before)


def _set(levels: Mapping[logging.Logger, int]) -> None:
    for logger, level in levels.items():
        logger.setLevel(level)


class _Text(logging.Formatter):
    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname).1s %(name)s: %(message)s", datefmt="%H:%M:%S")

    def format(self, record: logging.LogRecord) -> str:
        return blotted(super().format(record))


class _Json(logging.Formatter):
    def __init__(self) -> None:
        super().__init__()
        self._run = uuid.uuid4().hex[:12]

    def format(self, record: logging.LogRecord) -> str:
        moment = datetime.datetime.fromtimestamp(record.created, datetime.UTC)
        line = {
            "time": moment.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "level": record.levelname,
            "logger": record.name,
            "message": blotted(record.getMessage()),
            "run": self._run,
            "thread": record.threadName,
        }
        if (shard := _current_shard()) is not None:
            line["shard"] = shard
        if record.exc_info:
            line["exception"] = blotted(self.formatException(record.exc_info))
        if record.stack_info:
            line["stack"] = blotted(record.stack_info)
        return json.dumps(line, default=str)


def _current_shard() -> int | None:
    activity = sys.modules.get("pipeline.activity")  # not there: nothing has run
    return activity.current_shard() if activity else None


class _Lines(io.TextIOBase):
    """Text that is written, as log records, a line each."""

    def __init__(self) -> None:
        self._rest = ""

    def writable(self) -> bool:
        return True

    def write(self, text: str) -> int:
        *lines, self._rest = (self._rest + text).split("\n")
        for line in lines:
            self._say(line)
        return len(text)

    def end(self) -> None:
        """What is left without an end of line."""
        self._say(self._rest)
        self._rest = ""

    @staticmethod
    def _say(line: str) -> None:
        if line.strip():
            logging.getLogger(_SAID).info("%s", line.rstrip())


def say_error(error: BaseException, form: str, to: TextIO) -> None:
    """The one sentence in which a command ends that failed."""
    if form == "json":
        logging.getLogger("jobs.cli").error("%s", error)
    else:
        print(f"error: {error}", file=to)
