"""What goes in comes out at the other side; and the near end stays open when the far one is gone."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from engine.runtime.relay import Relay


@pytest.fixture
def ends() -> Iterator[tuple[socket.socket, socket.socket]]:
    """The near end, and the far one."""
    with socket.create_server(("127.0.0.1", 0)) as service:
        host, port = service.getsockname()
        address = Relay(f"{host}:{port}").address.rpartition(":")
        with socket.create_connection((address[0], int(address[2]))) as near:
            far, _ = service.accept()
            near.settimeout(10.0)
            far.settimeout(10.0)
            with far:
                yield near, far


def test_what_goes_in_comes_out(ends: tuple[socket.socket, socket.socket]) -> None:
    near, far = ends
    near.sendall(b"ping")
    assert far.recv(100) == b"ping"
    far.sendall(b"pong")
    assert near.recv(100) == b"pong"


def test_the_near_end_stays_open_when_the_far_one_is_gone(ends: tuple[socket.socket, socket.socket]) -> None:
    near, far = ends
    far.close()
    near.settimeout(0.3)
    for _ in range(3):
        near.sendall(b"are you there?")
        with pytest.raises(TimeoutError):
            near.recv(100)


def test_the_far_end_closes_with_the_near_one(ends: tuple[socket.socket, socket.socket]) -> None:
    near, far = ends
    near.close()
    assert far.recv(100) == b""


def test_a_service_that_is_not_there_yet_is_tried_again_by_whoever_connects() -> None:
    with socket.create_server(("127.0.0.1", 0)) as service:
        address = service.getsockname()
    host, _, port = Relay(f"{address[0]}:{address[1]}").address.rpartition(":")
    with socket.create_connection((host, int(port))) as near:
        near.settimeout(10.0)
        assert near.recv(100) == b""
    with socket.create_server(address) as service, socket.create_connection((host, int(port))) as near:
        near.sendall(b"ping")
        far, _ = service.accept()
        with far:
            assert far.recv(100) == b"ping"
