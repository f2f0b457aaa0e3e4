"""`penstock status --watch`: an output until it is finished; elsewhere than on a terminal, only when it changes."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TextIO

from jobs.status import Status, status_lines
from jobs.wording import count_words
from pipeline.manifest import Manifest
from pipeline.storage import exists, join
from pipeline.workplan import read_plan
from schemas.manifest import SUCCESS_NAME

LEAST_SECONDS = 0.5
_UP, _CLEAR = "\x1b[{}F", "\x1b[J"


def watch(
    output: str, every_seconds: float, to: TextIO, as_lines: Callable[[Status], Sequence[str]] | None = None
) -> None:
    """Returns when the job is finished. `as_lines` gives other lines than those of `penstock status`."""
    plan = read_plan(output)
    manifest, drawn, before = Manifest(output, plan), 0, None
    while True:
        status = _status(output, manifest)
        lines = as_lines(status) if as_lines else _lines(status, to.isatty())
        if to.isatty() and not as_lines:
            to.write((_UP.format(drawn) + _CLEAR if drawn else "") + "\n".join(lines) + "\n")
            drawn = len(lines)
        elif lines != before:
            to.write("\n".join(lines) + "\n")
        to.flush()
        before = lines
        if status.is_finished:
            return
        time.sleep(max(LEAST_SECONDS, every_seconds))


def _status(output: str, manifest: Manifest) -> Status:
    """As `read_status`, but an entry is read once."""
    is_finished = exists(join(output, SUCCESS_NAME))  # first: what is finished has all its entries
    return Status.of(output, manifest.plan, manifest.entries(), is_finished)


def _lines(status: Status, whole: bool) -> list[str]:
    if whole or status.is_finished:
        return [f"{label:<9}{text}".rstrip() for label, text in status_lines(status)]
    done = f"{status.done.shards:,} of {count_words(len(status.plan.shards), 'shard')}"
    rows = f"{status.records_done:,} of {status.plan.rows_total:,} rows done, {status.done.failed:,} failed"
    return [f"{status.plan.name}: {done}, {rows}"]
