"""A follower makes the leader's calls: the same results, the same cache, and an end that both know of.

Both are in this process here, each with an executor of its own on one device. In processes of their own, with a mesh
over both, they are in tests/equivalence/test_two_processes.py.
"""

from __future__ import annotations

import dataclasses
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import jax
import numpy as np
import pytest

from engine.compilation.placement import Placement
from engine.errors import HostLost, NoFeasiblePlan, OutOfMemory
from engine.runtime import devices, follower
from engine.runtime.departure import Departure
from engine.runtime.engine import Engine
from engine.runtime.executor import Executor
from engine.runtime.hosts import Hosts
from engine.runtime.leader import Followers, LeadingExecutor
from engine.runtime.loading import Loaded
from engine.runtime.peer import Peer
from engine.runtime.request import GenerateRequest, Sampling, ScoreRequest
from tests.engine import tiny
from tests.engine.runtime.connections import connected

CONFIG = dataclasses.replace(tiny.CONFIG, layers=1)
OPTIONS = tiny.options(max_length=32, pages=8 * 2 + 2)
SCORE = ScoreRequest((5, 6, 7))
REQUESTS = [
    *(
        GenerateRequest(tokens, Sampling(max_tokens=9, temperature=1.0), record=record, samples=2)
        for record, tokens in enumerate(tiny.prompts(6, 14, seed=1))
    ),
    SCORE,
]


@pytest.fixture(autouse=True)
def one_program_at_a_time(monkeypatch) -> None:
    """Both trace programs in this process, and beartype cannot check shapes in two threads at once."""
    lock, run = threading.Lock(), Executor._run

    def locked(self: Executor, *args: Any) -> Any:
        with lock:
            return run(self, *args)

    monkeypatch.setattr(Executor, "_run", locked)


class NoDeparture(Departure):
    """This process stays."""

    def __init__(self) -> None:
        self.begun: list[HostLost] = []
        self.announcements = 0

    def begin(self, lost: HostLost) -> None:
        self.begun.append(lost)

    def announce(self, exit_code: int = 2) -> None:
        self.announcements += 1


class Both:
    """An engine that leads, and the thread that follows it."""

    def __init__(self, threads: ThreadPoolExecutor) -> None:
        near, self.connection = connected()
        self.leader = Peer(self.connection, "the leader")
        self.departure = NoDeparture()
        params = tiny.random_params(CONFIG)
        loaded = Loaded(params, Placement(CONFIG), tiny.EOS, jax.devices()[0], "float32", "float32")
        self.followed: Future = threads.submit(self._follow, loaded)
        followers = Followers([Peer(near, "process 1", "Start again")], self.departure)
        self.engine = Engine(params, CONFIG, OPTIONS, tiny.EOS, followers)

    def _follow(self, loaded: Loaded) -> None:
        follower.serve(self.leader, loaded)
        self.leader.close()

    def cut(self) -> None:
        """As when the follower's process ends."""
        self.connection.shutdown(socket.SHUT_RDWR)


@pytest.fixture
def lead() -> Iterator[Callable[[], Both]]:
    with ThreadPoolExecutor() as threads:
        made: list[Both] = []

        def make() -> Both:
            made.append(Both(threads))
            return made[-1]

        yield make
        for both in made:
            both.engine.close()
            both.leader.close()


def test_answers_are_those_of_an_engine_alone_and_the_follower_did_the_same(lead, monkeypatch) -> None:
    caches: dict[int, Any] = {}
    calls: list[tuple[int, str]] = []

    def note(name: str, plain: Callable) -> Callable:
        def noted(self: Executor, *args: Any) -> Any:
            result = plain(self, *args)
            calls.append((id(self), name))
            if name != "score":
                caches[id(self)] = result[0] if name == "decode" else result
            return result

        return noted

    for name in ("new_cache", "prefill_into", "copy_pages", "decode", "score"):
        monkeypatch.setattr(Executor, name, note(name, getattr(Executor, name)))
    both = lead()
    futures = [both.engine.submit(request) for request in REQUESTS]
    answers = [future.result() for future in futures]
    both.engine.close()
    both.followed.result()
    ours, theirs = caches
    assert [name for who, name in calls if who == ours] == [name for who, name in calls if who == theirs]
    assert {name for _, name in calls} == {"new_cache", "prefill_into", "copy_pages", "decode", "score"}
    for one, other in zip(*(jax.tree.leaves(caches[who]) for who in (ours, theirs)), strict=True):
        np.testing.assert_array_equal(np.asarray(one), np.asarray(other))
    assert (both.departure.begun, both.departure.announcements) == ([], 0)
    monkeypatch.undo()
    with Engine(tiny.random_params(CONFIG), CONFIG, OPTIONS, tiny.EOS) as alone:
        assert [alone.submit(request).result() for request in REQUESTS] == answers


def test_when_a_follower_is_lost_requests_fail_with_its_name(lead) -> None:
    both = lead()
    both.cut()
    with pytest.raises(HostLost, match=r"lost process 1: its process has ended\. Start again"):
        [both.engine.submit(request) for request in REQUESTS][-1].result()
    with pytest.raises(HostLost, match="lost process 1"):
        both.engine.submit(SCORE)
    both.engine.close()
    assert [str(lost) for lost in both.departure.begun] == ["lost process 1: its process has ended. Start again"]
    assert both.departure.announcements == 1


def test_a_collective_that_breaks_is_explained_by_the_loss_that_broke_it(lead, monkeypatch) -> None:
    both = lead()

    def broken(self: Executor, tokens: np.ndarray) -> Any:
        if not isinstance(self, LeadingExecutor):
            return ()
        both.cut()
        raise jax.errors.JaxRuntimeError("UNKNOWN: Gloo all-reduce failed: connection reset by peer")

    monkeypatch.setattr(Executor, "score", broken)
    with pytest.raises(HostLost, match="lost process 1: its process has ended"):
        both.engine.submit(SCORE).result()


def test_when_the_leader_fails_its_followers_are_told(lead, monkeypatch) -> None:
    def full(self: Executor, tokens: np.ndarray) -> Any:
        self._followers.tell("score", arrays=(tokens,))  # type: ignore[attr-defined]
        raise MemoryError

    monkeypatch.setattr(LeadingExecutor, "score", full)
    both = lead()
    with pytest.raises(OutOfMemory):
        both.engine.submit(SCORE).result()
    with pytest.raises(HostLost, match="lost the leader: it failed: the device ran out of memory"):
        both.followed.result()
    both.engine.close()
    assert both.departure.announcements == 1


def test_a_call_of_another_version_is_refused(lead) -> None:
    both = lead()
    both.engine._programs._followers.tell("pray")  # type: ignore[attr-defined]
    with pytest.raises(HostLost, match="'pray', which this version does not know"):
        both.followed.result()
    both.cut()


def test_a_process_that_has_used_its_devices_cannot_join_others(monkeypatch) -> None:
    jax.devices()
    monkeypatch.setattr(devices, "_connected", False)
    with pytest.raises(NoFeasiblePlan, match="needs a process of its own"):
        devices.connect_devices("127.0.0.1:9", 2, 0)
    with pytest.raises(HostLost, match="another needs new processes"):  # at once, whoever may come
        Followers.gather(Hosts(2, "127.0.0.1:9"), {})
