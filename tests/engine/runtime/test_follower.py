"""What a follower that is stopped says to the leader, and ends with."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from engine.errors import HostLost
from engine.runtime import follower
from engine.runtime.hosts import Hosts, gather
from engine.runtime.loading import ModelAsked
from tests.engine.runtime.connections import free_port


class TakenAway(KeyboardInterrupt):
    exit_code = 143


class Model(ModelAsked):
    def terms(self) -> dict[str, str]:
        return {}


@pytest.mark.parametrize(
    ("stop", "said", "exit_code"),
    [
        (KeyboardInterrupt(), "it was interrupted by Ctrl-C", 130),
        (TakenAway("it was ended by SIGTERM"), "it was ended by SIGTERM", 143),
        (ValueError("no such dtype"), "ValueError: no such dtype", 2),
    ],
)
def test_it_says_why_it_goes_and_which_code_it_ends_with(
    monkeypatch: pytest.MonkeyPatch, stop: BaseException, said: str, exit_code: int
) -> None:
    announced: list[int] = []

    def stopped(*_: Any) -> None:
        raise stop

    class Departure:
        def __init__(self, grace_seconds: float) -> None: ...

        def begin(self, lost: Exception) -> None: ...

        def announce(self, exit_code: int) -> None:
            announced.append(exit_code)

    monkeypatch.setattr(follower, "Departure", Departure)
    monkeypatch.setattr(follower, "connect_devices", stopped)
    hosts = Hosts(2, f"127.0.0.1:{free_port()}", wait_seconds=20.0)
    with ThreadPoolExecutor() as threads:
        leader = threads.submit(gather, hosts, {})
        with pytest.raises(type(stop)):
            follower.follow(Model("nowhere"), hosts, 1)
        ((peer,), _) = leader.result()
        with pytest.raises(HostLost, match=f"it failed: {said}"):
            peer.receive()
        peer.close()
    assert announced == [exit_code]
