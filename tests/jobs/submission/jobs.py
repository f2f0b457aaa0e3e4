"""Jobs for a runner elsewhere, as the spec has them."""

from __future__ import annotations

import json
from typing import Any

from jobs.spec import Job

DATAFLOW = {
    "project": "my-project",
    "region": "us-central1",
    "temp_location": "gs://bucket/temp",
    "image": "us-docker.pkg.dev/my-project/penstock/worker:0.1.0",
    "accelerator": "v5e",
}


def dataflow_job(mesh: str = "1x1x1", **dataflow: Any) -> Job:
    """A job on gs:// for Dataflow; None takes a setting away."""
    settings = {name: value for name, value in {**DATAFLOW, **dataflow}.items() if value is not None}
    return job({"name": "dataflow", "dataflow": settings}, mesh)


def job(runner: dict[str, Any], mesh: str = "1x1x1", **changes: Any) -> Job:
    document = {
        "name": "Capitals_of.Europe",
        "task": "generate",
        "model": {"checkpoint": "gs://bucket/checkpoint"},
        "input": {"path": "gs://bucket/in/*.jsonl"},
        "prompt": {"template": "Q: {{ question }}\nA:"},
        "output": {"path": "gs://bucket/out"},
        "engine": {"mesh": mesh},
        "runner": runner,
    }
    return Job.model_validate_json(json.dumps(document | changes))
