"""A mark in the output stops the runs that were there before it, and no later one."""

from __future__ import annotations

import contextlib
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from pipeline import activity, cancellation, storage
from pipeline.activity import Cancelled
from pipeline.errors import OutputError
from schemas.submission import CANCEL_NAME


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(cancellation, "POLL_SECONDS", 0.05)
    activity.reset()
    yield
    activity.reset()


def _stops(output: str, ignored: str | None, seconds: float = 10.0) -> bool:
    """Whether a shard of that run stops; the answer `no` takes three looks."""
    try:
        with cancellation.watched(output, ignored):
            for _ in range(3):
                time.sleep(cancellation.POLL_SECONDS)
                activity.stop_if_cancelled(output, ignored)
    except Cancelled:
        return True
    return False


def test_a_run_stops_when_it_is_cancelled_and_a_later_one_does_not(tmp_path: Path) -> None:
    output = str(tmp_path)
    assert cancellation.begin(output) is None
    stopped = threading.Event()

    def shard() -> None:
        try:
            with cancellation.watched(output, None):
                while True:
                    activity.stop_if_cancelled(output, None)
                    time.sleep(0.01)
        except Cancelled:
            stopped.set()

    thread = threading.Thread(target=shard)
    thread.start()
    assert not stopped.wait(0.2)
    mark = cancellation.cancel(output, "me@here")
    assert stopped.wait(20)
    thread.join()
    assert _stops(output, None)  # a shard of the old run that begins only now stops at once

    later = cancellation.begin(output)
    assert later == mark.token
    resumed = cancellation.read(output)
    assert resumed is not None
    assert resumed.resumed_at is not None
    assert not _stops(output, later)
    assert _stops(output, None)  # the old run stays cancelled, though a new one has begun
    cancellation.cancel(output, "me@here")
    assert _stops(output, later)


def test_a_run_of_another_output_in_the_same_process_goes_on(tmp_path: Path) -> None:
    one, other = str(tmp_path / "one"), str(tmp_path / "other")
    cancellation.cancel(one, "me")
    assert _stops(one, None)
    assert not _stops(other, None)


def test_shards_of_a_run_share_one_watch_that_ends_with_them(tmp_path: Path) -> None:
    output = str(tmp_path)

    def watchers() -> int:
        return sum(thread.name == "watch for cancel" for thread in threading.enumerate())

    before = watchers()
    with cancellation.watched(output, None), cancellation.watched(output, None):
        assert watchers() == before + 1
    deadline = time.monotonic() + 20
    while watchers() > before:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_store_that_does_not_answer_stops_no_shard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def no_answer(output: str) -> None:
        asked.append(output)
        raise OSError("503")

    monkeypatch.setattr(cancellation, "read", no_answer)
    assert not _stops(str(tmp_path), None)
    assert len(asked) >= 2


def test_what_somebody_else_wrote_there_is_named(tmp_path: Path) -> None:
    storage.publish_over(storage.join(str(tmp_path), CANCEL_NAME), b"{}")
    with pytest.raises(OutputError, match="_cancel cannot be used: it has version None, not 1; delete it"):
        cancellation.read(str(tmp_path))


@pytest.mark.parametrize(
    ("cancelled", "stopped"),
    [
        ((), {("a", None), ("a", "1"), ("b", None), ("a",), ()}),
        (("a",), {("a", None), ("a", "1"), ("a",)}),
        (("a", None), {("a", None)}),
        (("a", "1"), {("a", "1")}),
    ],
)
def test_one_run_is_cancelled_or_all_of_an_output_or_all(cancelled: tuple, stopped: set) -> None:
    runs = [("a", None), ("a", "1"), ("b", None), ("a",), ()]
    activity.cancel(*cancelled)
    for run in runs:
        with pytest.raises(activity.Cancelled) if run in stopped else contextlib.nullcontext():
            activity.stop_if_cancelled(*run)
    activity.reset("b")
    still = {run for run in stopped if cancelled}
    for run in runs:
        with pytest.raises(activity.Cancelled) if run in still else contextlib.nullcontext():
            activity.stop_if_cancelled(*run)
    activity.reset("a")
    for run in runs:
        activity.stop_if_cancelled(*run)


@pytest.mark.parametrize("cancelled", [(), ("a",), ("a", "1")])
def test_who_pauses_is_woken_when_its_run_is_cancelled(cancelled: tuple) -> None:
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(activity.pause, 60.0, "a", "1")
        activity.cancel("b")
        assert not waiting.done()
        activity.cancel(*cancelled)
        with pytest.raises(activity.Cancelled):
            waiting.result(timeout=30)
