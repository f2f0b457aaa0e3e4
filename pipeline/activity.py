"""What the shards of this process are doing, for the one who watches or stops them: live counts, and `cancel`."""

from __future__ import annotations

import contextlib
import threading
import weakref
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextvars import ContextVar
from typing import Any

from .errors import PenstockError

_REASONS_KEPT = 20
_COUNTS = ("records_done", "records_failed", "prompt_tokens", "generated_tokens", "scored_tokens")

Run = tuple[str, str | None]
"""One run of a job, as workers tell it from others: the output, and the `penstock cancel` that came before it."""

_cancelled: set[tuple[str | None, ...]] = set()
"""Runs, or the beginnings of runs: (output, token) is one, (output,) all of an output, and () all there are."""
_driver = threading.Event()
_counts: Counter[str] = Counter()
_reasons: Counter[str] = Counter()
_events: Counter[str] = Counter()
_open: Counter[str] = Counter()
_engines: weakref.WeakSet[Any] = weakref.WeakSet()
_shard: ContextVar[int | None] = ContextVar("shard", default=None)
_lock = threading.Lock()
_cancelling = threading.Condition(_lock)


class Cancelled(PenstockError):
    """The run was interrupted; what it has not published, the next run computes."""


def cancel(*run: str | None) -> None:
    """Make the shards of a run that are in this process stop with `Cancelled`, and every later one, until `reset`.
    Without its second part it is all runs of an output, and without any it is all runs."""
    with _cancelling:
        _cancelled.add(run)
        _cancelling.notify_all()


def stop_if_cancelled(*run: str | None) -> None:
    """To be called now and then by whatever takes long, with the run it is for, as far as that is known."""
    if _is_cancelled(run):
        raise Cancelled("the run was cancelled; the same command goes on where it stopped")


def pause(seconds: float, *run: str | None) -> None:
    """Wait; `Cancelled` at once when the run is."""
    with _cancelling:
        _cancelling.wait_for(lambda: _is_cancelled(run), timeout=seconds)
    stop_if_cancelled(*run)


def _is_cancelled(run: tuple[str | None, ...]) -> bool:
    return any(run[:known] in _cancelled for known in range(len(run) + 1))


def start_driving() -> None:
    """To be said by the process that started the run: it ends by itself, and says why."""
    _driver.set()


def driver_is_here() -> bool:
    """Whether this process started the run. Others are a runner's, which starts new ones for those that end."""
    return _driver.is_set()


def live() -> dict[str, int]:
    """Counts since the start of the process, as rows get ready. A shard that is repeated counts again: for display."""
    with _lock:
        return {name: _counts[name] for name in _COUNTS}


def failures() -> dict[str, int]:
    """Failed records by the kind of their error, since the start of the process."""
    with _lock:
        return dict(_reasons)


def events() -> dict[str, int]:
    """What happened besides, by name, since the start of the process; see `happened`."""
    with _lock:
        return dict(_events)


def happened(event: str) -> None:
    """Count what is no row: a request to a store that was repeated, for one."""
    with _lock:
        _events[event] += 1


def open_now() -> dict[str, int]:
    """How many shards, and how many records of them that are not answered, are open at the moment."""
    with _lock:
        return {"shards": _open["shards"], "records": _open["records"]}


def opened(records: int) -> None:
    """Records were handed to the engine, or, below zero, are no longer waited for."""
    with _lock:
        _open["records"] += records


@contextlib.contextmanager
def working_on(shard: int) -> Iterator[None]:
    """What this thread does in the block is for this shard."""
    token = _shard.set(shard)
    with _lock:
        _open["shards"] += 1
    try:
        yield
    finally:
        with _lock:
            _open["shards"] -= 1
        _shard.reset(token)


def current_shard() -> int | None:
    """The shard that this thread works on."""
    return _shard.get()


def engine_started(engine: Any) -> None:
    """Make an engine known to those who watch, for as long as it lives."""
    with _lock:
        _engines.add(engine)


def engines() -> list[Any]:
    """The engines of this process: one, as a rule."""
    with _lock:
        return list(_engines)


def count(rows: Sequence[Mapping[str, Any]]) -> None:
    """Add the output rows of one record."""
    failed = rows[0]["status"] == "failed"
    with _lock:
        _counts["records_done"] += 1
        _counts["records_failed"] += failed
        if failed:
            reason = str(rows[0].get("error")).split(":", 1)[0]
            _reasons[reason if reason in _reasons or len(_reasons) < _REASONS_KEPT else "other"] += 1
        _counts["prompt_tokens"] += 0 if failed else rows[0]["prompt_token_count"]
        for row in rows:
            _counts["generated_tokens"] += row.get("completion_token_count") or 0
            _counts["scored_tokens"] += sum(row.get("token_count") or ())


def reset(output: str | None = None) -> None:
    """Count from zero and forget `cancel`, before a run of `output`: for a process that runs one job after another."""
    with _lock:
        _cancelled.difference_update([run for run in _cancelled if output is None or run[:1] in ((), (output,))])
        _counts.clear()
        _reasons.clear()
        _events.clear()
