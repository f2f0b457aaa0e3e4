"""A runner that is not there, is something else or lets nobody in is told apart in seconds."""

from __future__ import annotations

import contextlib
import socket
import sys
import threading
import time
from collections.abc import Iterator
from concurrent import futures

import pytest

from jobs.submission import endpoints
from jobs.submission.endpoints import RunnerUnreachable
from tests.jobs.submission.jobs import DATAFLOW, dataflow_job, job


def _require(endpoint: str) -> None:
    endpoints.require(job({"name": "portable", "portable": {"job_endpoint": endpoint}}))


@contextlib.contextmanager
def _answering(reply: bytes | None) -> Iterator[str]:
    """A server that says `reply` to whoever connects and hangs up, or, with None, says nothing at all."""
    with socket.create_server(("localhost", 0)) as server:
        ended = threading.Event()

        def serve() -> None:
            kept = []
            server.settimeout(0.05)
            while not ended.is_set():
                with contextlib.suppress(TimeoutError, OSError):
                    connection, _ = server.accept()
                    if reply is None:
                        kept.append(connection)
                    else:
                        connection.sendall(reply)
                        connection.close()
            for connection in kept:
                connection.close()

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield f"localhost:{server.getsockname()[1]}"
        finally:
            ended.set()
            thread.join()


def test_nobody_listens() -> None:
    with socket.create_server(("localhost", 0)) as server:
        port = server.getsockname()[1]
    with pytest.raises(RunnerUnreachable, match=rf"the job server is not at localhost:{port}: .*refused; start it"):
        _require(f"localhost:{port}")


def test_a_host_that_does_not_exist() -> None:
    with pytest.raises(RunnerUnreachable, match=r"runner.portable.job_endpoint: .* nowhere.invalid:8099"):
        _require("nowhere.invalid:8099")


def test_a_port_that_no_machine_has() -> None:
    with pytest.raises(RunnerUnreachable, match="the job server is not at localhost:99999"):
        _require("localhost:99999")


def test_a_web_server() -> None:
    reply = b"HTTP/1.1 400 Bad Request\r\n\r\n"
    with _answering(reply) as address, pytest.raises(RunnerUnreachable, match="does not speak gRPC, or wants TLS"):
        _require(address)


def test_a_server_that_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoints, "ANSWER_SECONDS", 0.3)
    with _answering(None) as address, pytest.raises(RunnerUnreachable, match="did not answer in 0 seconds"):
        _require(address)


def test_a_server_of_something_else() -> None:
    import grpc

    server = grpc.server(futures.ThreadPoolExecutor(1))
    port = server.add_insecure_port("localhost:0")
    server.start()
    try:
        with pytest.raises(RunnerUnreachable, match="what listens there is no job server of Beam"):
            _require(f"localhost:{port}")
    finally:
        server.stop(0).wait()


def test_a_pool_of_workers_that_is_not_there() -> None:
    with socket.create_server(("localhost", 0)) as server:
        address = f"localhost:{server.getsockname()[1]}"
    portable = {"job_endpoint": "embed", "environment": "EXTERNAL", "service_address": address}
    with pytest.raises(RunnerUnreachable, match=r"runner.portable.service_address: the pool of workers is not at"):
        endpoints.require(job({"name": "portable", "portable": portable}))


def test_without_credentials_dataflow_is_not_asked(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path / "absent.json"))
    with pytest.raises(RunnerUnreachable, match="there are no Google credentials here; run gcloud auth"):
        endpoints.require(dataflow_job())


def test_a_token_server_that_hangs_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    never = threading.Event()
    monkeypatch.setattr(endpoints, "_credentials", never.wait)
    monkeypatch.setattr(endpoints, "CREDENTIALS_SECONDS", 0.1)
    started = time.monotonic()
    with pytest.raises(RunnerUnreachable, match="did not answer in 0 seconds; is there a network"):
        endpoints.credentials()
    assert time.monotonic() - started < 60
    never.set()


def test_without_the_client_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "google.cloud.dataflow", None)
    with pytest.raises(RunnerUnreachable, match=r"pip install 'penstock\[dataflow\]'"):
        endpoints.require(job({"name": "dataflow", "dataflow": DATAFLOW}))
