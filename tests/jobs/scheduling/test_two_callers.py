"""Several processes call run-due at once, or are killed in the middle: every partition is scored, and scored once."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from schemas.scheduling import Attempt
from tests.jobs.scheduling.conftest import Place

ROOT = Path(__file__).parents[3]
WEEK = "2026-01-12T00:00"
DAYS = [f"2026-01-{day:02}" for day in range(5, 12)]


class Caller:
    """penstock run-due in a process of its own."""

    def __init__(self, place: Place, engine: str = "instant") -> None:
        command = [sys.executable, "-m", "tests.jobs.scheduling.fake_caller", place.scheduled.file, engine]
        self.process = subprocess.Popen(
            command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        assert self.process.stdout
        assert self.process.stdin
        self.said, self.asked = self.process.stdout, self.process.stdin

    def start(self, now: str) -> None:
        self.asked.write(f"{now}+00:00\n")
        self.asked.flush()

    def computed(self) -> dict[str, int]:
        return json.loads(self.said.readline())


@pytest.fixture
def caller(place: Place) -> Iterator[Caller]:
    place.schedule(retries={"limit": 0}, catch_up="8d")
    other = Caller(place)
    assert other.said.readline() == "ready\n"
    yield other
    other.asked.close()
    other.process.wait()
    other.said.close()


def keys(day: str) -> list[str]:
    return [f"dt={day}/hour={hour:02}" for hour in range(24)]


def both(place: Place, caller: Caller, now: str) -> tuple[dict[str, int], dict[str, int]]:
    """Two calls at once: the shards that each computed."""
    caller.start(now)
    ours = {key: result.shards_computed for key, result in place.call(now).items()}
    return ours, caller.computed()


def attempts(place: Place, key: str) -> list[Attempt]:
    return [Attempt.from_json(path.read_bytes()) for path in sorted((place.out / "_attempts" / key).glob("*.json"))]


def test_a_week_of_hours_with_late_data_a_missed_day_a_failed_day_and_two_callers(place: Place, caller: Caller) -> None:
    missed, failed, late = DAYS[2], DAYS[4], DAYS[1]
    for day in DAYS:
        for key in keys(day):
            if day == failed:
                place.write(key).write_text("{}\n")  # what brings the data broke
            elif day != missed:
                place.write(key, range(2))
    ours, theirs = both(place, caller, WEEK)
    good = [key for day in DAYS if day not in (missed, failed) for key in keys(day)]
    assert {key for key in good if ours[key] + theirs[key] == 1} == set(good)
    assert sum(ours.values()) + sum(theirs.values()) == len(good)
    assert min(sum(ours.values()), sum(theirs.values())) > 0, "one caller did everything: nothing was tried"
    assert len(place.ids()) == 2 * len(good)

    for key in (*keys(missed), *keys(failed)):
        place.write(key, range(2))
    for key in keys(late)[:5]:
        place.write(key, [2], file="late")
    ours, theirs = both(place, caller, WEEK)
    assert sum(ours.values()) + sum(theirs.values()) == 24 + 24 + 5

    everything = [key for day in DAYS for key in keys(day)]
    assert len(everything) == 168
    assert [key for key in everything if not (place.out / key / "_SUCCESS").exists()] == []
    assert place.ids() == sorted(
        [f"{key}/{row}" for key in everything for row in range(2)] + [f"{key}/2" for key in keys(late)[:5]]
    )
    tried = {key: [attempt.state for attempt in attempts(place, key)] for key in everything}
    assert {key for key in everything if tried[key] == ["failed", "done"]} == set(keys(failed))
    assert {key for key in everything if tried[key] == ["done", "done"]} == set(keys(late)[:5])
    assert sum(attempt.shards_computed for key in everything for attempt in attempts(place, key)) == 168 + 5


def test_a_caller_that_is_killed_loses_its_lease_and_what_it_finished_stays(place: Place) -> None:
    place.schedule(retries={"limit": 1, "backoff": "0s"})
    key = "dt=2026-01-05/hour=00"
    place.write(key, range(60))
    slow = Caller(place, "slow")
    assert slow.said.readline() == "ready\n"
    slow.start("2026-01-05T01:00")
    deadline = time.monotonic() + 60
    while len(list((place.out / key).glob("part-*"))) < 3 and time.monotonic() < deadline:
        time.sleep(0.01)
    os.kill(slow.process.pid, signal.SIGKILL)
    slow.process.wait()
    finished = {path.name: path.stat().st_mtime_ns for path in (place.out / key).glob("part-*")}
    assert 3 <= len(finished) < 30
    slow.asked.close()
    slow.said.close()
    other = Caller(place)
    other.start("2026-01-05T01:00")
    assert other.said.readline() == "ready\n"
    computed = other.computed()
    assert computed == {key: 30 - len(finished)}
    assert {path.name: path.stat().st_mtime_ns for path in (place.out / key).glob("part-*")}.items() >= finished.items()
    assert [attempt.state for attempt in attempts(place, key)] == ["running", "done"]
    assert len(place.ids()) == 60
    other.asked.close()
    other.process.wait()
    other.said.close()
