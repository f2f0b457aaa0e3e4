"""A CronJob. A schedule file on this machine goes along as a ConfigMap, with its job; one behind a URL is read so."""

from __future__ import annotations

import posixpath
from collections.abc import Mapping
from typing import Any

import yaml

from jobs.job_file import read_text
from jobs.scheduling.export.call import Calling
from pipeline.errors import JobError

_MOUNTED = "/etc/penstock"


def export(calling: Calling) -> Mapping[str, str]:
    image = calling.require_image("kubernetes")
    scheduled = calling.scheduled
    for field, path in (("output", scheduled.root), ("input", scheduled.schedule.input)):
        if "://" not in path:
            raise JobError(f"{field}: {path} is on this machine, where no pod finds it; use gs:// or s3://")
    documents = [] if "://" in scheduled.file else [_config_map(calling)]
    documents.append(_cron_job(calling, image, is_mounted=bool(documents)))
    return {f"{calling.name}.yaml": yaml.safe_dump_all(documents, sort_keys=False, width=120)}


def _config_map(calling: Calling) -> dict[str, Any]:
    """The schedule file and its job file, which lie in one directory."""
    scheduled = calling.scheduled
    directory, name = posixpath.split(scheduled.file)
    job_directory, job_name = posixpath.split(scheduled.schedule.job)
    if posixpath.abspath(directory) != job_directory:
        raise JobError(f"{scheduled.file}: keep {scheduled.schedule.job} beside it, or both behind a URL")
    files = {name: read_text(scheduled.file), job_name: read_text(scheduled.schedule.job)}
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": calling.name}, "data": files}


def _cron_job(calling: Calling, image: str, *, is_mounted: bool) -> dict[str, Any]:
    arguments = list(calling.arguments)
    container: dict[str, Any] = {"name": "run-due", "image": image, "command": ["penstock"], "args": arguments}
    pod: dict[str, Any] = {"restartPolicy": "Never", "terminationGracePeriodSeconds": 60, "containers": [container]}
    if is_mounted:
        arguments[1] = posixpath.join(_MOUNTED, posixpath.basename(calling.scheduled.file))
        container["volumeMounts"] = [{"name": "schedule", "mountPath": _MOUNTED, "readOnly": True}]
        pod["volumes"] = [{"name": "schedule", "configMap": {"name": calling.name}}]
    return {
        "apiVersion": "batch/v1",
        "kind": "CronJob",
        "metadata": {"name": calling.name},
        "spec": {
            "schedule": calling.fields.expression,
            "timeZone": "Etc/UTC" if calling.zone == "UTC" else calling.zone,
            "concurrencyPolicy": "Forbid",
            "startingDeadlineSeconds": 3600,
            "jobTemplate": {"spec": {"backoffLimit": 0, "template": {"spec": pod}}},
        },
    }
