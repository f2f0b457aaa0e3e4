"""`penstock-worker`: the program that a runner starts for each worker of a PROCESS environment.

Runners start it with the flags of Beam's container contract (sdks/CONTAINERS in Beam's sources): an id, and the
addresses of the runner's provisioning, control, logging and artifact services. It asks for the pipeline's options and
runs Beam's own harness. Nothing is fetched or installed: Penstock is where this program is.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

PROVISION_SECONDS = 60.0


def main(arguments: Sequence[str] | None = None) -> None:
    """Serves until the runner has no more work."""
    options = _parser().parse_args(arguments)
    if not (options.id and options.provision_endpoint):
        sys.exit("penstock-worker is started by a runner (environment: PROCESS), not by hand; see docs/runners.md")
    import grpc
    from apache_beam.portability.api import beam_provision_api_pb2, beam_provision_api_pb2_grpc, endpoints_pb2
    from apache_beam.runners.worker import sdk_worker_main
    from google.protobuf import json_format, text_format

    os.environ["WORKER_ID"] = options.id
    with grpc.insecure_channel(options.provision_endpoint) as channel:
        info = (
            beam_provision_api_pb2_grpc.ProvisionServiceStub(channel)
            .GetProvisionInfo(
                beam_provision_api_pb2.GetProvisionInfoRequest(),
                metadata=[("worker_id", options.id)],
                timeout=PROVISION_SECONDS,
                wait_for_ready=True,
            )
            .info
        )
    endpoints = {
        "CONTROL_API_SERVICE_DESCRIPTOR": info.control_endpoint.url or options.control_endpoint,
        "LOGGING_API_SERVICE_DESCRIPTOR": info.logging_endpoint.url or options.logging_endpoint,
        "STATUS_API_SERVICE_DESCRIPTOR": info.status_endpoint.url,
    }
    for name, url in endpoints.items():
        if url:
            os.environ[name] = text_format.MessageToString(endpoints_pb2.ApiServiceDescriptor(url=url))
    os.environ["PIPELINE_OPTIONS"] = json_format.MessageToJson(info.pipeline_options)
    os.environ["RUNNER_CAPABILITIES"] = " ".join(info.runner_capabilities)
    sdk_worker_main.main([])


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="penstock-worker", description=__doc__.splitlines()[0] if __doc__ else None)
    for flag in ("id", "provision_endpoint", "control_endpoint", "logging_endpoint", "artifact_endpoint"):
        parser.add_argument(f"--{flag}", default="", help="given by the runner")
    parser.add_argument("--semi_persist_dir", help="given by the runner; not used")
    return parser


if __name__ == "__main__":
    main()
