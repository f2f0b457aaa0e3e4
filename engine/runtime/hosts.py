"""The processes that hold one model together, and how they find each other.

Process 0 is the leader: it listens, and runs the batcher. The others follow: they connect, and run the programs the
leader runs. Before anything is loaded all say what they are set up for; who differs is refused, with the difference.
"""

from __future__ import annotations

import contextlib
import logging
import socket
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from engine.errors import HostLost, NoFeasiblePlan
from engine.runtime.channel import BadFrame, Closed, Frame, read_frame, write_frame
from engine.runtime.peer import SILENCE_SECONDS, Peer

logger = logging.getLogger(__name__)

Terms = Mapping[str, str]
"""What must be the same in all processes, by the names a user knows."""

_GREETING_SECONDS = 10.0
_RETRY_SECONDS = 0.5
_REMIND_SECONDS = 30.0


@dataclass(frozen=True)
class Hosts:
    count: int
    coordinator: str
    """HOST:PORT at which the leader listens, as the followers reach it."""
    wait_seconds: float = 600.0
    """For all to come."""
    silence_seconds: float = SILENCE_SECONDS
    """After which a process that shows no sign of life is lost."""

    def __post_init__(self) -> None:
        host, _, port = self.coordinator.rpartition(":")
        if not (host and port.isdecimal() and 0 < int(port) < 1 << 16):
            raise NoFeasiblePlan(
                f"hosts.coordinator must be HOST:PORT, such as 10.0.0.1:8476; got {self.coordinator!r}"
            )
        if self.count < 2:
            raise NoFeasiblePlan(f"hosts.count must be at least 2; got {self.count}. Leave hosts out for one host")

    @property
    def address(self) -> tuple[str, int]:
        host, _, port = self.coordinator.rpartition(":")
        return host.strip("[]"), int(port)

    def at_port(self, port: int) -> str:
        """The leader's host, with another port."""
        return f"{self.coordinator.rpartition(':')[0]}:{port}"

    def agreed(self, terms: Terms) -> dict[str, str]:
        return {**terms, "engine.hosts.count": str(self.count)}

    @property
    def remedy(self) -> str:
        return f"See what it said last; then start the job again on all {self.count} hosts"


@dataclass(frozen=True)
class Welcome:
    """What a follower is told once all are there."""

    jax_coordinator: str
    """HOST:PORT of the service by which the jax of all processes find each other."""


def gather(hosts: Hosts, terms: Terms) -> tuple[list[Peer], Welcome]:
    """The leader's part: waits for all followers, in the order of their process numbers, and welcomes them."""
    reminder, terms = _Reminder(hosts.wait_seconds), hosts.agreed(terms)
    joined: dict[int, Peer] = {}
    with _listening(hosts) as listener:
        while len(joined) < hosts.count - 1:
            missing = [process for process in range(1, hosts.count) if process not in joined]
            reminder.say(f"waiting at {hosts.coordinator} for {_listed(missing)} of {hosts.count}")
            if reminder.is_over:
                for peer in joined.values():
                    peer.close(f"{_listed(missing)} did not come in {hosts.wait_seconds:g} seconds")
                raise HostLost(
                    f"{_listed(missing)} did not come in {hosts.wait_seconds:g} seconds. Start `penstock follow` with "
                    f"the same job file on every other host, with --process 1 to {hosts.count - 1}; each must reach "
                    f"{hosts.coordinator}"
                )
            with contextlib.suppress(TimeoutError):
                _greet(*listener.accept(), hosts, terms, joined)
            for process in [process for process, peer in joined.items() if peer.lost]:
                logger.warning("%s; it may come again", joined.pop(process).lost)
    welcome = Welcome(hosts.at_port(_free_port(hosts)))
    peers = [joined[process] for process in sorted(joined)]
    for peer in peers:
        peer.send("welcome", {"jax_coordinator": welcome.jax_coordinator})
    return peers, welcome


def join(hosts: Hosts, process: int, terms: Terms) -> tuple[Peer, Welcome]:
    """A follower's part: connects to the leader as soon as it listens, and waits to be welcomed."""
    if not 1 <= process < hosts.count:
        raise NoFeasiblePlan(
            f"process must be 1 to {hosts.count - 1} (engine.hosts.count is {hosts.count}, and the leader is "
            f"process 0); got {process}"
        )
    connection = _connect(hosts)
    name = f"the leader at {hosts.coordinator}"
    try:
        write_frame(connection, Frame("join", {"process": process, "terms": hosts.agreed(terms)}))
    except OSError as error:
        raise HostLost(f"{name} hung up: {error.strerror or error}") from error
    leader = Peer(connection, name, hosts.remedy, silence_seconds=hosts.silence_seconds)
    answer = leader.receive()
    if answer.name == "refused":
        leader.close()
        raise HostLost(f"{name} refused this process: {answer.facts.get('why')}")
    if answer.name != "welcome":
        leader.close()
        raise HostLost(f"{name} answered {answer.name!r}, and should have said welcome or refused")
    return leader, Welcome(str(answer.facts.get("jax_coordinator")))


def differences(leader: Terms, follower: Terms, process: int) -> list[str]:
    """What is not the same, in words for both."""
    both = {name: (leader.get(name, "unknown"), follower.get(name, "unknown")) for name in sorted({*leader, *follower})}
    return [
        f"{name} is {theirs} on process {process} and {ours} on the leader"
        for name, (ours, theirs) in both.items()
        if ours != theirs
    ]


def _greet(
    connection: socket.socket,
    address: tuple,
    hosts: Hosts,
    terms: Terms,
    joined: dict[int, Peer],
) -> None:
    """Hears one connection out; takes it into `joined` or refuses it. A stray one is dropped."""
    connection.settimeout(_GREETING_SECONDS)
    try:
        frame = read_frame(connection, most_array_bytes=0)
        process, theirs = frame.facts.get("process"), frame.facts.get("terms")
        if frame.name != "join" or type(process) is not int or not isinstance(theirs, dict):
            raise BadFrame("it did not ask to join")
        why = _refusal(process, theirs, hosts, terms, joined)
        if why:
            logger.warning("refused process %s of %s: %s", process, address[0], why)
            write_frame(connection, Frame("refused", {"why": why}))
            connection.close()
            return
    except (BadFrame, Closed, OSError) as error:
        logger.info("dropped a connection of %s: %s", address[0], error)
        connection.close()
        return
    logger.info("process %d of %s has joined", process, address[0])
    name = f"process {process} ({address[0]})"
    joined[process] = Peer(connection, name, hosts.remedy, silence_seconds=hosts.silence_seconds)


def _refusal(process: int, theirs: Terms, hosts: Hosts, terms: Terms, joined: Mapping[int, Peer]) -> str | None:
    if different := differences(terms, theirs, process):
        return f"{'; '.join(different)}. Give both the same job file and the same version"
    if not 1 <= process < hosts.count:
        return f"there are processes 1 to {hosts.count - 1} besides the leader, and no {process}"
    if process in joined and not joined[process].lost:
        return f"process {process} is there already; give every host a --process of its own"
    return None


@contextlib.contextmanager
def _listening(hosts: Hosts) -> Iterator[socket.socket]:
    try:
        listener = socket.create_server(hosts.address, family=_family(hosts))
    except OSError as error:
        raise NoFeasiblePlan(
            f"cannot listen at hosts.coordinator {hosts.coordinator}: {error.strerror or error}. It must be an address "
            "of the host that leads, with a port that is free"
        ) from error
    with listener:
        listener.settimeout(_RETRY_SECONDS)
        yield listener


def _free_port(hosts: Hosts) -> int:
    with socket.create_server((hosts.address[0], 0), family=_family(hosts)) as probe:
        return probe.getsockname()[1]


def _family(hosts: Hosts) -> socket.AddressFamily:
    return socket.getaddrinfo(*hosts.address, type=socket.SOCK_STREAM)[0][0]


def _connect(hosts: Hosts) -> socket.socket:
    reminder = _Reminder(hosts.wait_seconds)
    while True:
        try:
            return socket.create_connection(hosts.address, timeout=_GREETING_SECONDS)
        except OSError as error:
            if reminder.is_over:
                raise HostLost(
                    f"nobody listened at {hosts.coordinator} for {hosts.wait_seconds:g} seconds "
                    f"({error.strerror or error}). Start `penstock run` with the same job file there"
                ) from error
        reminder.say(f"waiting for the leader at {hosts.coordinator}")
        time.sleep(_RETRY_SECONDS)


class _Reminder:
    """Says now and then what is being waited for, and when it has been waited for too long."""

    def __init__(self, wait_seconds: float) -> None:
        self._over = time.monotonic() + wait_seconds
        self._next = time.monotonic()

    @property
    def is_over(self) -> bool:
        return time.monotonic() > self._over

    def say(self, what: str) -> None:
        if time.monotonic() >= self._next:
            logger.warning("%s", what)
            self._next += _REMIND_SECONDS


def _listed(processes: list[int]) -> str:
    some = ", ".join(map(str, processes[:8])) + (" ..." if len(processes) > 8 else "")
    return f"process {some}" if len(processes) == 1 else f"processes {some}"
