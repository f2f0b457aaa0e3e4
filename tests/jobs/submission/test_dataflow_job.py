"""The request to Dataflow, field by field, for every TPU worker that there is; no network is needed."""

from __future__ import annotations

import json
from typing import Any

import apache_beam as beam
import pytest

from jobs.submission.beam_flags import beam_options
from jobs.submission.dataflow_job import DataflowRequest, dataflow_request
from jobs.submission.dataflow_machines import TPU_HOSTS
from pipeline.graph import build
from pipeline.inference import ShardJob
from pipeline.sources.base import WorkItem
from pipeline.workplan import PlanFacts
from tests.jobs.submission.jobs import dataflow_job

# Written out again from the table of Google's documentation: chip, mesh, type, topology, machine.
TPUS = [
    ("v5e", "1x1x1", "tpu-v5-lite-podslice", "1x1", "ct5lp-hightpu-1t"),
    ("v5e", "2x2x1", "tpu-v5-lite-podslice", "2x2", "ct5lp-hightpu-4t"),
    ("v5e", "2x4x1", "tpu-v5-lite-podslice", "2x4", "ct5lp-hightpu-8t"),
    ("v6e", "1x1x1", "tpu-v6e-slice", "1x1", "ct6e-standard-1t"),
    ("v6e", "1x4x1", "tpu-v6e-slice", "2x2", "ct6e-standard-4t"),
    ("v6e", "8", "tpu-v6e-slice", "2x4", "ct6e-standard-8t"),
    ("v5p", "2x2x1", "tpu-v5p-slice", "2x2x1", "ct5p-hightpu-4t"),
]
EXPERIMENTS = {"no_use_multiple_sdk_containers", "beam_fn_api", "use_unified_worker", "use_runner_v2"}
URL = "gs://bucket/in/a.jsonl"


def request(mesh: str, *flags: str, **settings: Any) -> DataflowRequest:
    """Of a pipeline that does nothing: the request names the pipeline as an upload, whatever it is."""
    options = beam_options(dataflow_job(mesh, **settings), flags)
    return dataflow_request(options, lambda pipeline: pipeline | beam.Impulse())


def of_the_real_pipeline(pipeline: beam.Pipeline) -> object:
    facts = PlanFacts("generate", "", 3, "job", "model")
    work = ShardJob("gs://bucket/out", facts, {"max_length": "auto"}, "gs://bucket/checkpoint")
    todo = [WorkItem(i, URL, "jsonl", "a.jsonl", 10 * i, 10, 100 * i, 100 * i + 100, {}) for i in range(3)]
    return build(pipeline, todo, work)


def test_the_table_is_whole() -> None:
    assert {(chip, topology) for chip, _, _, topology, _ in TPUS} == {
        (host.chip, host.topology) for hosts in TPU_HOSTS.values() for host in hosts
    }


@pytest.mark.parametrize(("chip", "mesh", "type", "topology", "machine"), TPUS)
def test_the_request_of_every_tpu_worker(chip: str, mesh: str, type: str, topology: str, machine: str) -> None:
    sent = request(mesh, accelerator=chip, zone="us-central1-a", machines=3, shard_timeout_minutes=90)
    job = sent.job
    assert job["name"].startswith("penstock-capitals-of-europe-")
    assert job["type"] == "JOB_TYPE_BATCH"
    environment = job["environment"]
    assert environment["workerZone"] == "us-central1-a"
    assert "workerRegion" not in environment
    assert environment["serviceOptions"] == [f"worker_accelerator=type:{type};topology:{topology}"]
    assert set(environment["experiments"]) >= EXPERIMENTS
    assert "use_multiple_sdk_containers" not in environment["experiments"]
    assert environment["tempStoragePrefix"].startswith(f"storage.googleapis.com/bucket/temp/{job['name']}.")
    assert environment["version"] == {"major": "8", "job_type": "FNAPI_BATCH"}
    (pool,) = environment["workerPools"]
    assert pool["machineType"] == machine
    assert pool["numThreadsPerWorker"] == 2
    assert pool["numWorkers"] == 3
    assert pool["autoscalingSettings"] == {"algorithm": "AUTOSCALING_ALGORITHM_NONE", "maxNumWorkers": 3}
    assert pool["workerHarnessContainerImage"] == "us-docker.pkg.dev/my-project/penstock/worker:0.1.0"
    (image,) = pool["sdkHarnessContainerImages"]
    assert image["containerImage"] == pool["workerHarnessContainerImage"]
    assert image["useSingleCorePerContainer"] is True  # no MULTI_CORE capability: one process
    options = environment["sdkPipelineOptions"]["options"]
    expected = {
        "project": "my-project",
        "region": "us-central1",
        "machine_type": machine,
        "worker_zone": "us-central1-a",
        "dataflow_service_options": [f"worker_accelerator=type:{type};topology:{topology}"],
        "sdk_location": "container",
        "number_of_worker_harness_threads": 2,
        "element_processing_timeout_minutes": 90,
        "resource_hints": [],
        "no_auth": False,
        "dry_run": False,
        "pipelineUrl": next(url for url in sent.uploads if url.endswith("/pipeline.pb")),
    }
    assert {name: options[name] for name in expected} == expected


def test_optional_settings_arrive_and_absent_ones_do_not() -> None:
    settings = {
        "service_account": "worker@my-project.iam.gserviceaccount.com",
        "subnetwork": "regions/us-central1/subnetworks/workers",
        "public_ips": False,
        "disk_gb": 200,
    }
    environment = request("1x1x1", "--label=team=search", **settings).job["environment"]
    (pool,) = environment["workerPools"]
    assert environment["serviceAccountEmail"] == settings["service_account"]
    assert pool["subnetwork"] == settings["subnetwork"]
    assert pool["ipConfiguration"] == "WORKER_IP_PRIVATE"
    assert pool["diskSizeGb"] == 200
    sent = dataflow_request(beam_options(dataflow_job()), of_the_real_pipeline)
    bare = sent.job["environment"]
    (pool,) = bare["workerPools"]
    assert not {"serviceAccountEmail", "workerZone"} & bare.keys()
    assert not {"subnetwork", "network", "ipConfiguration", "diskSizeGb"} & pool.keys()
    assert "packages" not in pool
    assert [url.rpartition("/")[2] for url in sent.uploads] == ["pipeline.pb"]  # not what is installed here
    assert 10_000 < sum(sent.uploads.values()) < 200_000
    assert len(json.dumps(sent.job)) < 20_000


def test_gpu_workers_have_the_driver_installed_and_cpu_workers_no_accelerator() -> None:
    gpus = request("2x1x1", accelerator="nvidia-l4", machine_type="g2-standard-24").job["environment"]
    assert gpus["serviceOptions"] == ["worker_accelerator=type:nvidia-l4;count:2;install-nvidia-driver"]
    assert gpus["workerPools"][0]["machineType"] == "g2-standard-24"
    cpus = request("1x1x1", accelerator="cpu", machine_type="n2-standard-16").job["environment"]
    assert "serviceOptions" not in cpus
    assert cpus["workerPools"][0]["machineType"] == "n2-standard-16"
