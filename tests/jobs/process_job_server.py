"""Beam's own job server with what it lacks: PROCESS environments, started as Flink and Spark start them.

python -m tests.jobs.process_job_server --port_file FILE
"""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

from apache_beam.portability import common_urns
from apache_beam.portability.api import beam_runner_api_pb2
from apache_beam.runners.portability import local_job_service_main
from apache_beam.runners.portability.fn_api_runner.worker_handlers import GrpcWorkerHandler, WorkerHandler


@WorkerHandler.register_environment(common_urns.environments.PROCESS.urn, beam_runner_api_pb2.ProcessPayload)
class ProcessWorkerHandler(GrpcWorkerHandler):
    """Starts the command of the environment with the flags of the container contract."""

    def __init__(self, payload: Any, state: Any, provision_info: Any, grpc_server: Any) -> None:
        super().__init__(state, provision_info, grpc_server)
        self._payload = payload

    def start_worker(self) -> None:
        port = self.control_address.rpartition(":")[2]
        address = f"localhost:{port}"
        flags = [f"--id={self.worker_id}", f"--provision_endpoint={address}", f"--control_endpoint={address}"]
        environment = {**os.environ, **self._payload.env}
        self._process = subprocess.Popen([self._payload.command, *flags], env=environment)

    def stop_worker(self) -> None:
        self._process.terminate()
        self._process.wait(timeout=20)


if __name__ == "__main__":
    local_job_service_main.run(sys.argv[1:])
