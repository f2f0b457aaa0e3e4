"""Which machine of Dataflow has the chips of a mesh.

Dataflow's TPU workers are single hosts: all chips of a worker are its own, and no worker talks to another's. So a mesh
must be one of a few sizes, and a model that does not fit one of them runs elsewhere.

Source: Google Cloud documentation, docs.cloud.google.com/dataflow/docs/tpu/tpu-support and .../gpu/gpu-support, 2026.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipeline.errors import JobError

if TYPE_CHECKING:
    from jobs.spec import Job

ELSEWHERE = "run it on a TPU slice of several hosts instead: penstock run and penstock follow (docs/multi-host.md)"


@dataclass(frozen=True)
class TpuHost:
    """A worker with TPUs: Dataflow's names for it, and what the TPU's runtime in the container is told."""

    chip: str
    topology: str
    type: str
    machine_type: str
    accelerator_type: str
    """TPU_ACCELERATOR_TYPE: a v5p counts cores, two a chip."""

    @property
    def chips(self) -> int:
        return math.prod(map(int, self.topology.split("x")))

    @property
    def service_option(self) -> str:
        return f"worker_accelerator=type:{self.type};topology:{self.topology}"

    @property
    def bounds(self) -> str:
        """TPU_CHIPS_PER_HOST_BOUNDS: always three numbers."""
        return ",".join([*self.topology.split("x"), "1"][:3])


_ALL = [
    TpuHost("v5e", "1x1", "tpu-v5-lite-podslice", "ct5lp-hightpu-1t", "v5litepod-1"),
    TpuHost("v5e", "2x2", "tpu-v5-lite-podslice", "ct5lp-hightpu-4t", "v5litepod-4"),
    TpuHost("v5e", "2x4", "tpu-v5-lite-podslice", "ct5lp-hightpu-8t", "v5litepod-8"),
    TpuHost("v6e", "1x1", "tpu-v6e-slice", "ct6e-standard-1t", "v6e-1"),
    TpuHost("v6e", "2x2", "tpu-v6e-slice", "ct6e-standard-4t", "v6e-4"),
    TpuHost("v6e", "2x4", "tpu-v6e-slice", "ct6e-standard-8t", "v6e-8"),
    TpuHost("v5p", "2x2x1", "tpu-v5p-slice", "ct5p-hightpu-4t", "v5p-8"),
]

TPU_HOSTS: dict[str, list[TpuHost]] = {}
"""All TPU workers there are, by chip."""
for _host in _ALL:
    TPU_HOSTS.setdefault(_host.chip, []).append(_host)

GPU_MACHINES = {
    "nvidia-tesla-t4": ("n1-", "n1-standard-8"),
    "nvidia-l4": ("g2-", "g2-standard-8"),
    "nvidia-tesla-a100": ("a2-highgpu-", "a2-highgpu-1g"),
    "nvidia-a100-80gb": ("a2-ultragpu-", "a2-ultragpu-1g"),
    "nvidia-h100-80gb": ("a3-highgpu-", "a3-highgpu-1g"),
}
"""GPU -> how its machines' names begin, and one of them."""

_WITH_ITS_GPUS = ("a2-highgpu-", "a2-ultragpu-", "a3-highgpu-")
"""Families whose machines have as many GPUs as their name says: a2-ultragpu-4g."""
_GPUS = (1, 2, 4, 8)

CHIPS = {"v5e": "v5e", "v6e": "v6e", "v5p": "v5p", "nvidia-a100-80gb": "a100", "nvidia-h100-80gb": "h100"}
"""Accelerator -> the chip whose times are known. A nvidia-tesla-a100 has half the memory of that chip."""

TARGET = "{target}"
"""In the name of an image: which of the images it is that container/Dockerfile makes."""


def contradictions(accelerator: str, topology: str, machine_type: str) -> Iterator[tuple[str, str]]:
    """What does not go together, whatever the mesh."""
    if accelerator == "auto":
        for field, value in (("topology", topology), ("machine_type", machine_type)):
            if value != "auto":
                yield field, f"{value} is of one accelerator: name it, or leave {field} out as well"
        return
    if hosts := TPU_HOSTS.get(accelerator):
        topologies = {host.topology: host for host in hosts}
        if topology not in ("auto", *topologies):
            yield "topology", f"{accelerator} has {', '.join(topologies)}, not {topology}"
            return
        machines = {host.machine_type for host in hosts if topology in ("auto", host.topology)}
        if machine_type != "auto" and machine_type not in machines:
            of = accelerator if topology == "auto" else f"{accelerator} {topology}"
            yield "machine_type", f"{of} is in {' or '.join(sorted(machines))}, not {machine_type}; leave it out"
        return
    if topology != "auto":
        yield "topology", f"is of TPUs; {accelerator} has none, so leave it out"
    if machine_type == "auto" and not _is_counted(accelerator):
        example = GPU_MACHINES[accelerator][1] if accelerator in GPU_MACHINES else "n2-standard-16"
        yield "machine_type", f"is missing: name the machine for {accelerator}, such as {example}"
    elif (
        machine_type != "auto"
        and accelerator in GPU_MACHINES
        and not machine_type.startswith(GPU_MACHINES[accelerator][0])
    ):
        family, example = GPU_MACHINES[accelerator]
        yield "machine_type", f"{accelerator} is in {family}* machines, such as {example}; got {machine_type}"


def _is_counted(accelerator: str) -> bool:
    """Whether the number of GPUs says which machine has them."""
    return GPU_MACHINES.get(accelerator, ("",))[0] in _WITH_ITS_GPUS


def chips_of(mesh: str) -> int | None:
    """How many chips a mesh has; None where the mesh is left to be chosen."""
    return math.prod(int(size) for size in re.split(r"[x*]", mesh)) if mesh[:1].isdigit() else None


def tpu_host(chip: str, topology: str, mesh: str) -> TpuHost:
    """The worker whose chips are exactly the mesh's; an error says what to do where there is none."""
    hosts = TPU_HOSTS[chip]
    chips = chips_of(mesh)
    if chips is None and topology == "auto":
        raise JobError(
            f"runner.dataflow.topology: name one of {_words(hosts)}, since engine.mesh is {mesh!r} and says no size"
        )
    if topology != "auto":
        (host,) = (host for host in hosts if host.topology == topology)
        if chips not in (None, host.chips):
            raise JobError(
                f"runner.dataflow.topology: {topology} is {host.chips} chips, and engine.mesh {mesh} is {chips}; "
                "change one of them"
            )
        return host
    if "*" in mesh:
        raise JobError(f"engine.mesh: {mesh} is several slices, and workers of Dataflow are single hosts; {ELSEWHERE}")
    for host in hosts:
        if host.chips == chips:
            return host
    if chips is not None and chips > hosts[-1].chips:
        raise JobError(
            f"engine.mesh: {mesh} is {chips} chips, and a worker of Dataflow is one host, with at most "
            f"{hosts[-1].chips} {chip} chips ({hosts[-1].topology}). Use int8 weights or a chip with more memory "
            f"(penstock plan says what fits), or {ELSEWHERE}"
        )
    raise JobError(
        f"engine.mesh: {mesh} is {chips} {'chip' if chips == 1 else 'chips'}, and {chip} workers of Dataflow have "
        f"{_words(hosts)}; make the mesh one of these sizes"
    )


def with_chip(job: Job) -> Job:
    """The job as its workers are told it: they look for the chip that was asked for, and say if it is another."""
    settings = job.runner.dataflow
    chip = CHIPS.get(settings.accelerator) if job.runner.name == "dataflow" and settings else None
    if settings is None or chip is None:
        return job
    if job.engine.chip not in ("auto", chip):
        raise JobError(
            f"engine.chip: is {job.engine.chip}, and runner.dataflow.accelerator is {settings.accelerator}; change one "
            "of them"
        )
    return job.model_copy(update={"engine": job.engine.model_copy(update={"chip": chip})})


def gpu_option(accelerator: str, mesh: str) -> str:
    """The service option for as many GPUs as the mesh has."""
    return f"worker_accelerator=type:{accelerator};count:{_gpus_of(mesh)};install-nvidia-driver"


def gpu_machine(accelerator: str, machine_type: str, mesh: str) -> str:
    """The machine of so many GPUs, or the one that the job names, if it can have them."""
    if not _is_counted(accelerator):
        return machine_type
    count, family = _gpus_of(mesh), GPU_MACHINES[accelerator][0]
    has = gpus_of_machine(accelerator, machine_type)
    if count not in has:
        what = f"{family}* machines have" if machine_type == "auto" else f"{machine_type} has"
        raise JobError(
            f"engine.mesh: {mesh} is {count} {'GPU' if count == 1 else 'GPUs'}, and {what} "
            f"{' or '.join(map(str, has))}; change one of them"
        )
    return f"{family}{count}g" if machine_type == "auto" else machine_type


def gpus_of_machine(accelerator: str, machine_type: str) -> tuple[int, ...]:
    """How many GPUs it may have."""
    found = re.fullmatch(r".*-(\d+)g", machine_type) if _is_counted(accelerator) else None
    return (int(found[1]),) if found else _GPUS


def _gpus_of(mesh: str) -> int:
    count = chips_of(mesh)
    if count is None or "*" in mesh:
        raise JobError(f"engine.mesh: {mesh} does not say how many GPUs a worker has; write such as 1x1x1 or 2x1x1")
    if count > max(_GPUS):
        raise JobError(f"engine.mesh: {mesh} is {count} GPUs, and a worker of Dataflow has at most {max(_GPUS)}")
    return count


def _words(hosts: list[TpuHost]) -> str:
    return ", ".join(f"{host.topology} ({host.chips})" for host in hosts)
