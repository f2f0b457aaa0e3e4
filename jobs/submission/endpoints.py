"""Whether the runner is there and lets us in, known in seconds: Beam by itself waits minutes, or for ever."""

from __future__ import annotations

import contextlib
import importlib
import socket
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

from jobs.spec import Job
from pipeline.errors import PenstockError

T = TypeVar("T")

CONNECT_SECONDS = 5.0
ANSWER_SECONDS = 15.0
"""A job server in Java may still be starting."""
CREDENTIALS_SECONDS = 20.0

DATAFLOW_EXTRA = "submitting to Dataflow needs its client: pip install 'penstock[dataflow]'"


class RunnerUnreachable(PenstockError):
    """The runner is not there, is something else, or does not let us in."""


def require(job: Job) -> None:
    """Asks the runner of the job a question that costs nothing; RunnerUnreachable if it does not answer."""
    if job.runner.name == "dataflow":
        require_dataflow_client()
        credentials()
    elif job.runner.portable and job.runner.name == "portable":
        workers = job.runner.portable
        if workers.job_endpoint != "embed":
            job_service(workers.job_endpoint)
        if workers.service_address:
            _connect(workers.service_address, "runner.portable.service_address", "the pool of workers")


def job_service(endpoint: str) -> Any:
    """A stub of Beam's job API at `endpoint` that has answered."""
    import grpc
    from apache_beam.portability.api import beam_job_api_pb2, beam_job_api_pb2_grpc

    _connect(endpoint, "runner.portable.job_endpoint", "the job server")
    stub = beam_job_api_pb2_grpc.JobServiceStub(grpc.insecure_channel(endpoint))
    try:
        stub.DescribePipelineOptions(
            beam_job_api_pb2.DescribePipelineOptionsRequest(), timeout=ANSWER_SECONDS, wait_for_ready=False
        )
    except grpc.RpcError as error:
        code, details = _status(error)
        hint = {
            "UNIMPLEMENTED": "what listens there is no job server of Beam",
            "UNAVAILABLE": "what listens there does not speak gRPC, or wants TLS",
            "DEADLINE_EXCEEDED": f"it accepts connections and did not answer in {ANSWER_SECONDS:.0f} seconds",
            "UNAUTHENTICATED": "it wants credentials, which Beam's job API has no place for",
        }.get(code, f"it answered {code}")
        raise RunnerUnreachable(f"runner.portable.job_endpoint: {endpoint}: {hint} ({details})") from error
    return stub


def credentials() -> Any:
    """Google's credentials from the usual places, fresh."""
    try:
        return within(CREDENTIALS_SECONDS, _credentials)
    except TimeoutError as error:
        raise RunnerUnreachable(
            f"Google's token server did not answer in {CREDENTIALS_SECONDS:.0f} seconds; is there a network?"
        ) from error


def within(seconds: float, call: Callable[[], T]) -> T:
    """What `call` returns or raises; TimeoutError when it takes longer, and it is left to itself."""
    finished: Future[T] = Future()

    def run() -> None:
        try:
            finished.set_result(call())
        except BaseException as error:
            finished.set_exception(error)

    threading.Thread(target=run, name="asking the runner", daemon=True).start()
    return finished.result(timeout=seconds)


def require_dataflow_client() -> None:
    """An error that says what to install, before Beam says it another way."""
    try:
        for module in ("google.cloud.dataflow", "google.cloud.storage", "google_auth_httplib2"):
            importlib.import_module(module)
    except ImportError as error:
        raise RunnerUnreachable(f"{DATAFLOW_EXTRA} ({error})") from error


def _credentials() -> Any:
    import google.auth
    import google.auth.exceptions
    import google.auth.transport.requests

    try:
        found, _ = google.auth.default(scopes=["https://www.googleapis.com/auth/cloud-platform"])
        found.refresh(google.auth.transport.requests.Request())
    except google.auth.exceptions.DefaultCredentialsError as error:
        raise RunnerUnreachable(
            "there are no Google credentials here; run gcloud auth application-default login, or set "
            f"GOOGLE_APPLICATION_CREDENTIALS ({_first_line(error)})"
        ) from error
    except google.auth.exceptions.GoogleAuthError as error:
        raise RunnerUnreachable(
            f"the Google credentials here are refused or cannot be refreshed: {_first_line(error)}; run gcloud auth "
            "application-default login again"
        ) from error
    return found


def _connect(address: str, field: str, what: str) -> None:
    host, _, port = address.rpartition(":")
    try:
        with contextlib.closing(socket.create_connection((host, int(port)), timeout=CONNECT_SECONDS)):
            pass
    except (OSError, OverflowError) as error:
        reason = f"no answer in {CONNECT_SECONDS:.0f} seconds" if isinstance(error, TimeoutError) else error
        raise RunnerUnreachable(
            f"{field}: {what} is not at {address}: {reason}; start it, or mend the address"
        ) from error


def _status(error: Any) -> tuple[str, str]:
    return error.code().name, " ".join((error.details() or "").split())[:200]


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
