"""A job as the flags that Beam is given, one list for each runner.

A flag of the user's own comes after ours and wins, except for the few that would break what Penstock promises: those
are refused with the reason.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, TypeVar

from jobs.runners import known_options
from jobs.section import Section
from jobs.spec import Job
from jobs.submission.dataflow_machines import TPU_HOSTS, gpu_machine, gpu_option, tpu_host, with_chip
from jobs.submission.settings import Dataflow, Flink, Portable, Spark, Workers
from pipeline.errors import JobError

if TYPE_CHECKING:
    from apache_beam.options.pipeline_options import PipelineOptions

LONGEST_SECONDS = 365 * 24 * 3600
"""Beam puts its deadline for one answer of the job server on the stream of the job's states as well, so with the
default a job that takes more than five minutes counts as failed."""

_NO_FREEZE = "--experiments=disable_logging_submission_environment"
"""Beam would send what `pip freeze` prints here, which may hold addresses with passwords in them. That driver and
workers agree is checked by Penstock's version."""

_MULTIPLE = "Penstock runs one process on a worker, since two cannot share its chips"
_RIGHT_FITTING = "Dataflow's right fitting does not support accelerators"
_CREDENTIALS = "the runner stores and shows flags; Penstock takes credentials from the workers' own surroundings"
_REFUSED = {
    "--runner": "say it without Beam's name: penstock submit --runner dataflow|flink|spark|portable|local",
    "--resource_hint": _RIGHT_FITTING,
    "--resource_hints": _RIGHT_FITTING,
    "--template_location": "Penstock submits jobs and makes no templates; --dry-run writes the job's JSON",
    "--streaming": "a job has an end",
    "--save_main_session": "nothing of the main module is needed by the workers",
    "--update": "a finished shard is never recomputed; penstock cancel, then submit again",
    "--s3_access_key_id": _CREDENTIALS,
    "--s3_secret_access_key": _CREDENTIALS,
    "--s3_session_token": _CREDENTIALS,
    "--azure_connection_string": _CREDENTIALS,
}
_REFUSED_VALUES = {
    "use_multiple_sdk_containers": _MULTIPLE,
    "enable_prime": _RIGHT_FITTING,
}


S = TypeVar("S", bound=Section)


def beam_options(job: Job, flags: Sequence[str] = ()) -> PipelineOptions:
    """What Beam is told for the runner that the job names."""
    refuse_flags(flags)
    return known_options(beam_flags(job), flags)


def beam_flags(job: Job) -> list[str]:
    """Our own flags for the runner that the job names."""
    runner = job.runner
    makers: dict[str, Callable[[], Iterator[str]]] = {
        "dataflow": lambda: _dataflow(job, _section(runner.dataflow, Dataflow, "dataflow")),
        "portable": lambda: _portable(_section(runner.portable, Portable, "portable"), runner.workers),
        "flink": lambda: _flink(_section(runner.flink, Flink, "flink")),
        "spark": lambda: _spark(_section(runner.spark, Spark, "spark")),
    }
    return [*makers[runner.name](), _NO_FREEZE]


def _section(section: S | None, kind: type[S], name: str) -> S:
    """The runner's section; one that has a default for everything may be left out."""
    required = [field for field, facts in kind.model_fields.items() if facts.is_required()]
    if section is None and required:
        raise JobError(
            f"runner.{name}: is missing: say there how to reach it (at least {', '.join(required)}); docs/runners.md "
            "has examples"
        )
    return kind() if section is None else section


def _dataflow(job: Job, settings: Dataflow) -> Iterator[str]:
    assert settings.accelerator != "auto", "jobs/submission/placement.py names it"
    yield "--runner=DataflowRunner"
    yield f"--project={settings.project}"
    yield f"--region={settings.region}"
    yield f"--temp_location={settings.temp_location}"
    yield f"--job_name={dataflow_name(job)}"
    yield f"--sdk_container_image={settings.image}"
    yield "--sdk_location=container"
    yield "--experiments=no_use_multiple_sdk_containers"
    yield f"--number_of_worker_harness_threads={job.runner.workers}"
    yield f"--element_processing_timeout_minutes={settings.shard_timeout_minutes}"
    yield f"--num_workers={settings.machines}"
    yield f"--max_num_workers={settings.machines}"
    yield "--autoscaling_algorithm=NONE"
    with_chip(job)  # refuses another chip in engine.chip
    if settings.accelerator in TPU_HOSTS:
        host = tpu_host(settings.accelerator, settings.topology, job.engine.mesh)
        yield f"--dataflow_service_options={host.service_option}"
        yield f"--worker_machine_type={host.machine_type}"
    else:
        if settings.accelerator != "cpu":
            yield f"--dataflow_service_options={gpu_option(settings.accelerator, job.engine.mesh)}"
        yield f"--worker_machine_type={gpu_machine(settings.accelerator, settings.machine_type, job.engine.mesh)}"
    optional = {
        "worker_zone": settings.zone,
        "service_account_email": settings.service_account,
        "network": settings.network,
        "subnetwork": settings.subnetwork,
        "disk_size_gb": settings.disk_gb,
    }
    yield from (f"--{name}={value}" for name, value in optional.items() if value is not None)
    if not settings.public_ips:
        yield "--no_use_public_ips"


def dataflow_name(job: Job) -> str:
    """The job's name at Dataflow: the same for the same output, so that Dataflow refuses to run it twice at once."""
    words = re.sub(r"[^a-z0-9]+", "-", job.name.lower()).strip("-")
    return f"penstock-{words[:40].strip('-')}-{hashlib.sha256(job.output.path.encode()).hexdigest()[:8]}"


def _portable(settings: Portable, workers: int) -> Iterator[str]:
    yield "--runner=PortableRunner"
    yield f"--job_endpoint={settings.job_endpoint}"
    yield f"--job_server_timeout={LONGEST_SECONDS}"
    if settings.environment == "LOOPBACK":
        yield f"--direct_num_workers={workers}"  # heard by Beam's own job server; elsewhere each would be a process
    yield from _workers(settings)


def _flink(settings: Flink) -> Iterator[str]:
    from apache_beam.options.pipeline_options import FlinkRunnerOptions

    version = FlinkRunnerOptions.PUBLISHED_FLINK_VERSIONS[-1]
    yield "--runner=FlinkRunner"
    yield f"--flink_job_server_jar={_jar(settings.job_server_jar, 'flink', f'flink-{version}', 'Flink')}"
    yield f"--flink_master={settings.master}"
    if settings.parallelism is not None:
        yield f"--parallelism={settings.parallelism}"
    yield f"--job_server_timeout={LONGEST_SECONDS}"
    yield from _workers(settings)


def _spark(settings: Spark) -> Iterator[str]:
    yield "--runner=SparkRunner"
    yield f"--spark_job_server_jar={_jar(settings.job_server_jar, 'spark', 'spark-3', 'Spark')}"
    yield f"--spark_master_url={settings.master}"
    yield f"--job_server_timeout={LONGEST_SECONDS}"
    yield from _workers(settings)


def _jar(path: str | None, section: str, artifact: str, product: str) -> str:
    """Beam's job server for a cluster: Beam would download it unasked, from where it may hang."""
    field = f"runner.{section}.job_server_jar"
    if path is None:
        from apache_beam.version import __version__ as beam

        raise JobError(
            f"{field}: is missing: Beam reaches {product} through a job server in Java, "
            f"org.apache.beam:beam-runners-{artifact}-job-server:{beam} on Maven Central (another version of {product} "
            f"has another jar). Download it and name it, here or with --{section}-job-server-jar; or start it "
            "yourself and use the portable runner with its job endpoint"
        )
    if "://" not in path and not os.path.isfile(path):
        raise JobError(f"{field}: there is no file {path}")
    if shutil.which("java") is None:
        raise JobError(f"{field}: needs Java 11 or newer, and there is no java on the PATH")
    return path


def _workers(settings: Workers) -> Iterator[str]:
    yield f"--environment_type={settings.environment}"
    if settings.environment == "DOCKER":
        yield f"--environment_options=docker_container_image={settings.image}"
        yield "--sdk_location=container"
    elif settings.environment == "PROCESS":
        yield f"--environment_options=process_command={settings.process_command or 'penstock-worker'}"
    elif settings.environment == "EXTERNAL":
        yield f"--environment_config={settings.service_address}"  # Beam 2.77 does not hear its newer option


def refuse_flags(flags: Sequence[str]) -> None:
    """Refuses what would break a promise."""
    for flag in flags:
        name, _, value = flag.partition("=")
        reason = _REFUSED.get(name) or _REFUSED_VALUES.get((value or flag).partition("=")[0])
        if reason:
            raise JobError(f"{flag if value in _REFUSED_VALUES else name}: {reason}")
