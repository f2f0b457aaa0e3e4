"""Leases: one run at a time at a shard; a holder that died is found out without comparing clocks."""

from __future__ import annotations

import dataclasses
import multiprocessing
import os
import threading
import time
import uuid
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline import leases, storage
from pipeline.errors import OutputError
from pipeline.leases import Leases, holders
from schemas.lease import LEASES_NAME, Lease, lease_name

OF_ANOTHER_MACHINE = "another-boot/4026531836/1234/5678"


@pytest.fixture(params=["local", "objects"])
def output(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return str(tmp_path) if request.param == "local" else f"memory://{uuid.uuid4().hex}/out"


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The observer's own clock. What renews sleeps."""
    now = [1000.0]
    monkeypatch.setattr(leases.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(leases.threading.Thread, "start", lambda thread: None)
    return now


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], Leases]:
    """Leases of a process on another machine, of which nobody here knows whether it runs."""

    def make(output: str, run: str) -> Leases:
        made = Leases(output, run)
        take = made._take

        def take_there(shard: int) -> Lease | None:
            with pytest.MonkeyPatch.context() as patched:
                patched.setattr(leases, "_process", lambda pid: OF_ANOTHER_MACHINE)
                return take(shard)

        made._take = take_there  # type: ignore[method-assign]
        return made

    return make


def is_taken(by: Leases, shard: int) -> bool:
    with by.taken(shard) as taken:
        return taken


def die_holding(held: Leases, shard: int) -> None:
    assert held._take(shard)


def test_one_run_at_a_time(output: str) -> None:
    one, other = Leases(output, "one"), Leases(output, "other")
    with one.taken(7) as taken:
        assert taken
        assert not is_taken(other, 7)
        assert is_taken(other, 8)
        (lease,) = holders(output)
        assert (lease.shard, lease.run, lease.worker.rpartition(":")[2]) == (7, "one", str(os.getpid()))
        assert str(os.getpid()) in other.holder(7)
    assert holders(output) == []
    assert is_taken(other, 7)


def test_a_lease_is_let_go_of_when_the_shard_fails(output: str) -> None:
    one = Leases(output, "one")
    with pytest.raises(ZeroDivisionError), one.taken(7):
        raise ZeroDivisionError
    assert is_taken(Leases(output, "other"), 7)


def test_a_bundle_that_is_repeated_is_not_kept_waiting_by_its_first_try(output: str, elsewhere, clock) -> None:
    first = elsewhere(output, "run").taken(7)
    assert first.__enter__()
    with Leases(output, "run").taken(7) as taken:
        assert taken
    first.__exit__(None, None, None)  # the first try has lived on
    assert holders(output) == []


def test_a_dead_holder_keeps_others_waiting_as_long_as_a_lease_lasts(output: str, elsewhere, clock, caplog) -> None:
    die_holding(elsewhere(output, "dead"), 7)
    other = Leases(output, "other")
    assert not is_taken(other, 7)
    clock[0] += leases.LEASE_SECONDS - 1
    assert not is_taken(other, 7)
    clock[0] += 1
    with other.taken(7) as taken:
        assert taken
        assert [lease.run for lease in holders(output)] == ["other"]
    assert "has shown no sign of life for 120 s; taking over" in caplog.text


def test_a_holder_that_lives_is_left_alone_however_long_it_takes(output: str, elsewhere, clock) -> None:
    slow, other = elsewhere(output, "slow"), Leases(output, "other")
    with slow.taken(7):
        for _ in range(20):
            clock[0] += leases.LEASE_SECONDS / 3
            for lease, written in list(slow._held.values()):
                slow._renew_one(lease, written)
            assert not is_taken(other, 7)


@pytest.mark.parametrize("hours", [-30, 30])
def test_clocks_that_differ_by_hours_change_nothing(output: str, elsewhere, clock, hours: int, monkeypatch) -> None:
    """The wall clock of the holder, by which it says when it began, is never looked at."""
    die_holding(elsewhere(output, "skewed"), 7)
    url = storage.join(output, LEASES_NAME, lease_name(7))
    (lease,) = holders(output)
    skewed = dataclasses.replace(lease, taken_at=f"20{26 + hours // 30}-01-31T12:00:00+00:00")
    storage.publish_over(url, skewed.to_json())
    other = Leases(output, "other")
    assert not is_taken(other, 7)
    clock[0] += leases.LEASE_SECONDS - 1
    assert not is_taken(other, 7)
    clock[0] += 1
    assert is_taken(other, 7)


def test_one_of_many_takes_over(output: str, elsewhere, clock) -> None:
    die_holding(elsewhere(output, "dead"), 7)
    others = [Leases(output, f"run {number}") for number in range(8)]
    assert not any(is_taken(other, 7) for other in others)
    clock[0] += leases.LEASE_SECONDS
    blocks = [other.taken(7) for other in others]
    assert sum(block.__enter__() for block in blocks) == 1


def test_a_holder_that_was_taken_over_leaves_the_new_lease_alone(output: str, elsewhere, clock) -> None:
    sleeper, other = elsewhere(output, "sleeper"), Leases(output, "other")
    block = sleeper.taken(7)
    assert block.__enter__()
    assert not is_taken(other, 7)
    clock[0] += leases.LEASE_SECONDS
    with other.taken(7) as taken:
        assert taken
        for lease, written in list(sleeper._held.values()):
            sleeper._renew_one(lease, written)  # it wakes up
        assert sleeper._held == {}
        block.__exit__(None, None, None)
        assert [lease.run for lease in holders(output)] == ["other"]


def _hold(output: str, begun: str) -> None:
    with Leases(output, "killed").taken(7):
        Path(begun).touch()
        time.sleep(60)


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="only Linux tells one process from another")
def test_a_process_of_this_machine_that_was_killed_is_not_waited_for(tmp_path: Path) -> None:
    output, begun = str(tmp_path / "out"), tmp_path / "begun"
    holder = multiprocessing.get_context("forkserver").Process(target=_hold, args=(output, str(begun)), daemon=True)
    holder.start()
    while not begun.exists():
        time.sleep(0.01)
    other = Leases(output, "other")
    assert not is_taken(other, 7)
    holder.kill()
    holder.join()
    assert is_taken(other, 7)


@pytest.mark.parametrize("content", [b"", b"{", b'{"version": 99}', bytes(range(256))[128:]])
def test_a_lease_that_cannot_be_read_expires_like_any_other(output: str, clock, content: bytes) -> None:
    storage.publish_over(storage.join(output, LEASES_NAME, lease_name(7)), content)
    other = Leases(output, "other")
    assert not is_taken(other, 7)
    assert other.holder(7) == "another run"
    assert holders(output) == []
    clock[0] += leases.LEASE_SECONDS
    assert is_taken(other, 7)


def test_leases_are_renewed_while_they_are_held_and_by_one_thread(output: str) -> None:
    fast = Leases(output, "fast", seconds=0.3)
    with fast.taken(7), fast.taken(8):
        assert sum(thread.name == "penstock-leases" for thread in threading.enumerate()) >= 1
        deadline = time.monotonic() + 60
        while not all(lease.renewals > 2 for lease in holders(output)):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert len(holders(output)) == 2
    assert holders(output) == []


def test_a_store_that_fails_does_not_stop_what_is_computed(output: str, monkeypatch, caplog) -> None:
    caplog.set_level("INFO", "pipeline")
    held = Leases(output, "run", seconds=0.3)
    with monkeypatch.context() as patched, held.taken(7):

        def refuse(url: str, data: bytes = b"") -> None:
            raise OutputError(f"cannot replace {url}: no answer")

        patched.setattr(storage, "publish_over", refuse)
        deadline = time.monotonic() + 60
        while caplog.text.count("could not be renewed") < 2:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        patched.setattr(storage, "remove", refuse)
    assert "stays until it expires" in caplog.text
    assert [lease.run for lease in holders(output)] == ["run"]


def test_what_the_dead_have_left_goes_when_the_job_is_finished(output: str, elsewhere, clock) -> None:
    for shard in (1, 2):
        die_holding(elsewhere(output, "dead"), shard)
    leases.clear(output)
    assert holders(output) == []
    leases.clear(output)
