"""The whole request to Dataflow, as JSON, built without a network: what `submit --dry-run` writes.

Beam builds it, by the same code and from the same options as for a real submission; only the uploads are kept instead
of sent. So what can be wrong with the options is found here, and a test can look at every field.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from jobs.submission.endpoints import require_dataflow_client

if TYPE_CHECKING:
    import apache_beam as beam
    from apache_beam.options.pipeline_options import PipelineOptions


@dataclass(frozen=True)
class DataflowRequest:
    """What would be sent."""

    job: dict[str, Any]
    """The job as Dataflow's API takes it (projects.locations.jobs.create)."""
    uploads: dict[str, int]
    """What would be put into the staging location: URL -> bytes."""


def dataflow_request(options: PipelineOptions, build: Callable[[beam.Pipeline], Any]) -> DataflowRequest:
    """The request for the pipeline that `build` makes, with these options."""
    require_dataflow_client()
    import apache_beam as beam
    from apache_beam.options.pipeline_options import GoogleCloudOptions, TestOptions
    from apache_beam.runners.dataflow.dataflow_runner import DataflowRunner
    from apache_beam.runners.dataflow.internal import apiclient

    uploads: dict[str, int] = {}

    class KeptUploads(apiclient.DataflowApplicationClient):
        def stage_file_with_retry(
            self,
            gcs_or_local_path: str,
            file_name: str,
            stream_or_path: str | io.IOBase,
            mime_type: str = "application/octet-stream",
            total_size: int | None = None,
        ) -> None:
            if isinstance(stream_or_path, str):
                with open(stream_or_path, "rb") as file:
                    size = len(file.read())
            else:
                size = len(stream_or_path.read())
            uploads[f"{gcs_or_local_path}/{file_name}"] = size

    runner = DataflowRunner()
    mode, cloud = options.view_as(TestOptions), options.view_as(GoogleCloudOptions)
    mode.dry_run = True  # Beam asks nobody about buckets, and stops before it makes a client
    pipeline = beam.Pipeline(runner=runner, options=options)
    build(pipeline)
    runner.run_pipeline(pipeline, options)
    cloud.no_auth = True  # the client looks for no credentials
    client = KeptUploads(options, runner.job.root_staging_location)
    mode.dry_run = cloud.no_auth = False  # neither is part of what would be sent
    client.create_job_description(runner.job)
    return DataflowRequest(json.loads(runner.job.json()), uploads)
