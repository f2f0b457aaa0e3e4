"""What a job file says of the runner it is submitted to: one section for each runner.

`penstock submit` uses the section of the runner it submits to; the others may stay in the file.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import Field

from jobs.section import Section

Accelerator = Literal[
    "auto",
    "v5e", "v6e", "v5p",
    "nvidia-tesla-t4", "nvidia-l4", "nvidia-tesla-a100", "nvidia-a100-80gb", "nvidia-h100-80gb",
    "cpu",
]  # fmt: skip
Name = Annotated[str, Field(min_length=1, max_length=300, pattern=r"^[^\s;,]+$")]
Address = Annotated[str, Field(pattern=r"^[^\s/:]+:[1-9]\d{0,4}$", examples=["localhost:8099"])]


class Dataflow(Section):
    project: Annotated[str, Field(pattern=r"^[a-z0-9.:-]{4,100}$", examples=["my-project"])]
    """The Google Cloud project that pays."""
    region: Annotated[str, Field(pattern=r"^[a-z]+-[a-z]+\d+$", examples=["us-central1"])]
    """Where the job is run; keep input, output and checkpoint there too."""
    temp_location: Annotated[
        str, Field(pattern=r"^gs://[a-z0-9][a-z0-9_.-]{1,220}[a-z0-9]/\S+$", examples=["gs://bucket/temp"])
    ]
    """Where Beam puts the pipeline for the workers to fetch."""
    image: Annotated[
        str, Field(min_length=1, pattern=r"^\S+$", examples=["us-docker.pkg.dev/my-project/penstock/worker:0.1.0-tpu"])
    ]
    """Container image of the workers, made from container/Dockerfile. It must hold the same Penstock as this one.
    `{target}` in it stands for the kind of worker that it is made for: v5litepod-8, cuda, cpu."""
    accelerator: Accelerator
    """Which chips the workers have; `auto` is what suits the goal (`penstock submit --goal`). Each worker holds the
    whole model, on the chips of `engine.mesh`: on as many as suit, if the job does not say it."""
    topology: Literal["auto", "1x1", "2x2", "2x4", "2x2x1"] = "auto"
    """How the chips of a TPU worker are wired; `auto` is the one that has as many as the mesh."""
    machine_type: Literal["auto"] | Name = "auto"
    """The worker's machine. `auto` is the one that has the chips; for T4, L4 and CPUs name one."""
    zone: Annotated[str | None, Field(pattern=r"^[a-z]+-[a-z]+\d+-[a-z]$", examples=["us-central1-a"])] = None
    """The zone of the workers; TPUs and GPUs are not in every zone of a region."""
    machines: Annotated[int, Field(ge=1, le=1000)] = 1
    """How many workers. Each has a copy of the model and takes one shard after another; their number stays. If the job
    does not say it: one, or as many as `--goal` or `--deadline` of `penstock submit` takes."""
    shard_timeout_minutes: Annotated[int, Field(ge=1, le=10_000)] = 240
    """A worker whose shard takes longer is taken for hung: it ends itself, and the shard is tried again."""
    service_account: Annotated[str | None, Field(pattern=r"^[^@\s]+@[^@\s]+$")] = None
    """Whom the workers act as; by default the project's Compute Engine account."""
    network: Name | None = None
    """The network of the workers."""
    subnetwork: Annotated[str | None, Field(min_length=1, examples=["regions/us-central1/subnetworks/workers"])] = None
    """Their subnetwork."""
    public_ips: bool = True
    """Whether workers have public addresses. Without them the subnetwork needs Private Google Access."""
    disk_gb: Annotated[int | None, Field(ge=30, le=65_536)] = None
    """The disk of a worker; it holds the image. By default Dataflow's choice, which large images may fill."""

    def _contradictions(self) -> Iterator[tuple[str, str]]:
        from jobs.submission.dataflow_machines import TARGET, contradictions

        if unknown := [word for word in re.findall(r"\{.*?\}|[{}]", self.image) if word != TARGET]:
            yield "image", f"{unknown[0]} stands for nothing; {TARGET} stands for the kind of worker"
        if self.accelerator == "auto" and TARGET not in self.image:
            yield "image", f"is made for one kind of worker; with accelerator auto write {TARGET} where its tag says it"
        if self.zone and not self.zone.startswith(f"{self.region}-"):
            yield "zone", f"{self.zone} is not in region {self.region}"
        if self.network and self.subnetwork:
            yield "network", "give one of network and subnetwork; a subnetwork has its network"
        yield from contradictions(self.accelerator, self.topology, self.machine_type)


class Workers(Section):
    """Where a portable runner runs Penstock's own code."""

    environment: Literal["LOOPBACK", "PROCESS", "DOCKER", "EXTERNAL"] = "LOOPBACK"
    """Where Penstock's own code runs: `LOOPBACK` in the process that submits, `PROCESS` in a process that the runner
    starts beside itself, `DOCKER` in a container, `EXTERNAL` in a pool of workers that is already there."""
    image: Annotated[str | None, Field(min_length=1)] = None
    """For DOCKER: the image made from container/Dockerfile."""
    process_command: Annotated[str | None, Field(min_length=1)] = None
    """For PROCESS: the worker program on the runner's machines. By default penstock-worker, from their PATH."""
    service_address: Address | None = None
    """For EXTERNAL: where the pool of workers listens."""
    silence_minutes: Annotated[float, Field(gt=0, le=100_000, allow_inf_nan=False)] = 30
    """How long `penstock submit` waits where nothing happens at the output: no worker is new, none renews what it
    computes (they do so every 40 seconds), no shard gets done. Then it stops waiting and says so, because some runners
    do not notice when a worker was killed. Must be longer than workers take to be started and to load the model."""

    def _contradictions(self) -> Iterator[tuple[str, str]]:
        needs = {"DOCKER": "image", "EXTERNAL": "service_address"}
        of = {"image": "DOCKER", "process_command": "PROCESS", "service_address": "EXTERNAL"}
        needed = needs.get(self.environment)
        if needed and not self._given(needed):
            yield needed, f"is missing: environment {self.environment} needs it"
        for field, environment in of.items():
            if self._given(field) and self.environment != environment:
                yield field, f"belongs to environment {environment}, and environment is {self.environment}"


class Portable(Workers):
    job_endpoint: Literal["embed"] | Address
    """Where the runner takes jobs; `embed` is Beam's own small job server, in this process."""


class Flink(Workers):
    job_server_jar: Annotated[str | None, Field(min_length=1)] = None
    """Beam's job server for Flink: a path or URL of beam-runners-flink-VERSION-job-server-BEAM.jar. Needs Java."""
    master: Annotated[str, Field(min_length=1, examples=["[local]", "flink:8081"])] = "[local]"
    """The Flink cluster; `[local]` is one inside the job server."""
    parallelism: Annotated[int | None, Field(ge=1, le=10_000)] = None
    """Shards that are open at the same time over the whole cluster; by default Flink's own setting."""

    def _contradictions(self) -> Iterator[tuple[str, str]]:
        yield from super()._contradictions()
        if self.environment == "LOOPBACK" and self.master != "[local]":
            yield "environment", f"LOOPBACK workers are in this process, out of reach for {self.master}; use another"


class Spark(Workers):
    job_server_jar: Annotated[str | None, Field(min_length=1)] = None
    """Beam's job server for Spark: a path or URL of beam-runners-spark-3-job-server-BEAM.jar. Needs Java."""
    master: Annotated[str, Field(min_length=1, examples=["local[4]", "spark://host:7077"])] = "local[4]"
    """The Spark cluster; `local[N]` is one of N threads inside the job server."""

    def _contradictions(self) -> Iterator[tuple[str, str]]:
        yield from super()._contradictions()
        if self.environment == "LOOPBACK" and not self.master.startswith("local"):
            yield "environment", f"LOOPBACK workers are in this process, out of reach for {self.master}; use another"
