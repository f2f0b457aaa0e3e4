"""The processes of an engine find each other, whoever starts first; who is set up for something else is told so."""

from __future__ import annotations

import dataclasses
import logging
import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest

from engine.errors import HostLost, NoFeasiblePlan
from engine.runtime.channel import Frame, write_frame
from engine.runtime.hosts import Hosts, gather, join
from tests.engine.runtime.connections import free_port

TERMS = {"jax": "1.2.3", "engine.mesh": "2x2x2"}


@pytest.fixture
def hosts() -> Hosts:
    return Hosts(3, f"127.0.0.1:{free_port()}", wait_seconds=20.0)


@pytest.fixture
def start() -> Iterator[Callable[..., Future]]:
    """Runs a function in a thread of its own; closes the peers it returns."""
    with ThreadPoolExecutor() as threads:
        started: list[Future] = []

        def run(function: Callable, *args: Any) -> Future:
            started.append(threads.submit(function, *args))
            return started[-1]

        yield run
        for future in started:
            if not future.exception():
                peers = future.result()[0]
                for peer in peers if isinstance(peers, list) else [peers]:
                    peer.close()


def reach(hosts: Hosts) -> socket.socket:
    """A connection to the leader, as soon as it listens."""
    while True:
        try:
            return socket.create_connection(hosts.address)
        except ConnectionRefusedError:
            time.sleep(0.01)


@pytest.fixture
def until_logged(caplog: pytest.LogCaptureFixture) -> Iterator[Callable[[str], None]]:
    """Waits for words in the log of the processes."""

    def wait(words: str) -> None:
        while words not in caplog.text:
            time.sleep(0.01)

    with caplog.at_level(logging.INFO, logger="engine.runtime.hosts"):
        yield wait


@pytest.mark.parametrize("leader_first", [True, False])
def test_all_find_each_other_in_any_order(hosts: Hosts, start, until_logged, leader_first: bool) -> None:
    leader = start(gather, hosts, TERMS) if leader_first else None
    followers = [start(join, hosts, process, TERMS) for process in (2, 1)]
    if leader is None:
        until_logged("waiting for the leader")
        leader = start(gather, hosts, TERMS)
    peers, welcome = leader.result()
    assert [peer.name for peer in peers] == ["process 1 (127.0.0.1)", "process 2 (127.0.0.1)"]
    for future in followers:
        assert future.result()[1] == welcome
    host, _, port = welcome.jax_coordinator.rpartition(":")
    assert host == "127.0.0.1"
    assert int(port) != hosts.address[1]
    peers[0].send("end")
    assert followers[1].result()[0].receive().name == "end"


@pytest.mark.parametrize(
    ("count", "process", "terms", "said"),
    [
        (3, 1, TERMS | {"engine.mesh": "4x2x1"}, "engine.mesh is 4x2x1 on process 1 and 2x2x2 on the leader"),
        (3, 1, {"jax": "1.2.3"}, "engine.mesh is unknown on process 1 and 2x2x2 on the leader"),
        (3, 1, TERMS | {"new": "x"}, "new is x on process 1 and unknown on the leader"),
        (4, 3, TERMS, "engine.hosts.count is 4 on process 3 and 3 on the leader"),
        (3, 2, TERMS, "process 2 is there already; give every host a --process of its own"),
    ],
)
def test_who_does_not_fit_is_told_why_and_the_others_go_on(
    hosts: Hosts, start, until_logged, count: int, process: int, terms: dict, said: str
) -> None:
    leader = start(gather, hosts, TERMS)
    second = start(join, hosts, 2, TERMS)
    until_logged("process 2 of 127.0.0.1 has joined")
    with pytest.raises(HostLost, match="refused this process") as refused:
        join(dataclasses.replace(hosts, count=count), process, terms)
    assert said in str(refused.value)
    first = start(join, hosts, 1, TERMS)
    assert len(leader.result()[0]) == 2
    assert first.result()[1] == second.result()[1]


def test_connections_of_others_are_dropped(hosts: Hosts, start) -> None:
    leader = start(gather, hosts, TERMS)
    for data in (b"", b"GET / HTTP/1.1\r\n\r\n", b"\x00" * 100):
        with reach(hosts) as stray:
            stray.sendall(data)
    with reach(hosts) as stray:
        write_frame(stray, Frame("join", {"process": "1", "terms": None}))
    followers = [start(join, hosts, process, TERMS) for process in (1, 2)]
    assert len(leader.result()[0]) == 2
    assert all(future.result() for future in followers)


def test_a_follower_that_leaves_before_the_start_may_come_again(hosts: Hosts, start, until_logged) -> None:
    leader = start(gather, hosts, TERMS)
    with reach(hosts) as gone:
        write_frame(gone, Frame("join", {"process": 1, "terms": hosts.agreed(TERMS)}))
        until_logged("process 1 of 127.0.0.1 has joined")
    until_logged("it may come again")
    followers = [start(join, hosts, process, TERMS) for process in (1, 2)]
    assert len(leader.result()[0]) == 2
    assert all(future.result() for future in followers)


def test_whoever_waits_says_for_whom_and_gives_up(hosts: Hosts, start, caplog: pytest.LogCaptureFixture) -> None:
    hosts = dataclasses.replace(hosts, wait_seconds=1.0)
    with caplog.at_level(logging.WARNING):
        leader = start(gather, hosts, TERMS)
        early = start(join, hosts, 1, TERMS)
        with pytest.raises(HostLost, match=r"process 2 did not come in 1 seconds. Start `penstock follow`"):
            leader.result()
    assert f"waiting at {hosts.coordinator} for processes 1, 2 of 3" in caplog.text
    with pytest.raises(HostLost, match="it failed: process 2 did not come"):
        early.result()
    with pytest.raises(HostLost, match=f"nobody listened at {hosts.coordinator} for 1 seconds"):
        join(hosts, 1, TERMS)


@pytest.mark.parametrize("process", [0, 3, -1])
def test_a_process_number_is_checked_before_anything_is_tried(hosts: Hosts, process: int) -> None:
    with pytest.raises(NoFeasiblePlan, match="process must be 1 to 2"):
        join(hosts, process, TERMS)


@pytest.mark.parametrize("coordinator", ["10.0.0.1", ":8476", "10.0.0.1:", "10.0.0.1:x", "10.0.0.1:0", "a:70000"])
def test_a_coordinator_is_an_address_and_a_port(coordinator: str) -> None:
    with pytest.raises(NoFeasiblePlan, match=r"hosts\.coordinator must be HOST:PORT"):
        Hosts(2, coordinator)


def test_one_host_is_no_plan() -> None:
    with pytest.raises(NoFeasiblePlan, match=r"hosts\.count must be at least 2"):
        Hosts(1, "10.0.0.1:8476")


def test_an_address_of_another_host_or_a_port_in_use_is_said(hosts: Hosts) -> None:
    with socket.create_server(hosts.address), pytest.raises(NoFeasiblePlan, match=r"cannot listen at .* in use"):
        gather(hosts, TERMS)
    with pytest.raises(NoFeasiblePlan, match=r"cannot listen at .*192\.0\.2\.1:8476"):
        gather(Hosts(2, "192.0.2.1:8476"), TERMS)


def test_an_ipv6_address_keeps_its_brackets() -> None:
    hosts = Hosts(2, "[::1]:8476")
    assert hosts.address == ("::1", 8476)
    assert hosts.at_port(9) == "[::1]:9"
