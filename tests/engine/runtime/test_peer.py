"""A loss is noticed, said in a sentence, and told to whoever watches; an agreed end is none."""

from __future__ import annotations

import queue
import socket
import time
from collections.abc import Callable, Iterator

import numpy as np
import pytest

from engine.errors import HostLost
from engine.runtime.channel import Frame, read_frame, write_frame
from engine.runtime.peer import Loss, Peer
from tests.engine.runtime.connections import connected

LONG, SHORT = 30.0, 0.4


@pytest.fixture
def open_end() -> Iterator[Callable[..., tuple[Peer, socket.socket]]]:
    """Makes a peer, which calls its other end `process 1`, and that end, bare."""
    opened: list[tuple[Peer, socket.socket]] = []

    def make(silence_seconds: float = LONG) -> tuple[Peer, socket.socket]:
        ours, theirs = connected()
        opened.append((Peer(ours, "process 1", "Start again", silence_seconds=silence_seconds), theirs))
        return opened[-1]

    yield make
    for peer, theirs in opened:
        theirs.close()
        peer.close()


def test_frames_go_both_ways(open_end) -> None:
    peer, theirs = open_end()
    peer.send("decode", {"steps": 3}, (np.arange(4, dtype=np.int32),))
    frame = read_frame(theirs)
    assert (frame.name, frame.facts, frame.arrays[0].tolist()) == ("decode", {"steps": 3}, [0, 1, 2, 3])
    write_frame(theirs, Frame("alive"))
    write_frame(theirs, Frame("ended"))
    assert peer.receive().name == "ended"


@pytest.mark.parametrize(
    ("act", "said"),
    [
        (lambda theirs: theirs.close(), "lost process 1: its process has ended. Start again"),
        (lambda theirs: theirs.sendall(b"PNS"), "lost process 1: nothing was heard of it for 0.4 seconds. Start again"),
        (lambda theirs: None, "lost process 1: nothing was heard of it for 0.4 seconds. Start again"),
        (
            lambda theirs: write_frame(theirs, Frame("failed", {"why": "out of memory"})),
            "lost process 1: it failed: out of memory. Start again",
        ),
        (lambda theirs: theirs.sendall(b"x" * 100), "lost process 1: it does not speak Penstock's protocol"),
    ],
)
def test_a_loss_is_said_in_a_sentence(open_end, act: Callable, said: str) -> None:
    peer, theirs = open_end(SHORT)
    told: queue.SimpleQueue[HostLost] = queue.SimpleQueue()
    peer.loss.watch(told.put)
    act(theirs)
    assert str(told.get(timeout=10.0)).startswith(said)
    for use in (peer.receive, lambda: peer.send("decode"), peer.receive):
        with pytest.raises(HostLost, match="lost process 1"):
            use()
    late: queue.SimpleQueue[HostLost] = queue.SimpleQueue()
    peer.loss.watch(late.put)
    assert str(late.get(timeout=0)).startswith(said)


def test_signs_of_life_keep_a_silent_peer(open_end) -> None:
    peer, theirs = open_end(SHORT)
    for _ in range(8):
        time.sleep(SHORT / 4)
        write_frame(theirs, Frame("alive"))
    assert peer.lost is None
    theirs.settimeout(10.0)
    assert read_frame(theirs).name == "alive"  # and it gives them itself


def test_a_write_into_a_lost_connection_says_what_was_lost(open_end) -> None:
    peer, theirs = open_end()
    theirs.close()

    def write_on() -> None:
        for _ in range(1000):
            peer.send("decode", arrays=(np.zeros(10_000, np.int32),))

    with pytest.raises(HostLost, match="lost process 1: its process has ended"):
        write_on()


def test_an_agreed_end_is_no_loss(open_end) -> None:
    peer, theirs = open_end()
    write_frame(theirs, Frame("ended"))
    theirs.close()
    assert peer.receive().name == "ended"
    assert peer.loss.within(0.2) is None
    peer, theirs = open_end()
    peer.close()
    assert read_frame(theirs).name == "ended"
    theirs.close()
    assert peer.loss.within(0.2) is None


def test_a_failure_is_told(open_end) -> None:
    peer, theirs = open_end()
    peer.close(failure="out of memory")
    frame = read_frame(theirs)
    assert (frame.name, frame.facts) == ("failed", {"why": "out of memory"})


def test_of_several_losses_the_first_counts() -> None:
    loss = Loss()
    told: list[str] = []
    loss.watch(lambda lost: told.append(str(lost)))
    assert loss.within(0.0) is None
    loss.notice(HostLost("one"))
    loss.notice(HostLost("two"))
    assert (told, str(loss.within(0.0))) == (["one"], "one")
    assert loss.within(0.0) is not loss.within(0.0)  # each thread raises one of its own
