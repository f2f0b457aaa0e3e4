"""Which worker of Dataflow has a mesh's chips, and what is said where none has."""

from __future__ import annotations

import re

import pytest

from jobs.submission.dataflow_machines import TPU_HOSTS, gpu_machine, gpu_option, tpu_host, with_chip
from pipeline.errors import JobError
from tests.jobs.submission.jobs import DATAFLOW, dataflow_job, job


@pytest.mark.parametrize("host", [host for hosts in TPU_HOSTS.values() for host in hosts], ids=str)
def test_a_worker_is_found_by_its_chips_and_by_its_topology(host) -> None:
    assert tpu_host(host.chip, "auto", str(host.chips)) == host
    assert tpu_host(host.chip, host.topology, f"1x{host.chips}x1") == host
    assert tpu_host(host.chip, host.topology, "auto") == host  # a mesh that is still to be chosen
    assert host.bounds.count(",") == 2
    sizes = [int(size) for size in host.bounds.split(",")]
    assert sizes[0] * sizes[1] * sizes[2] == host.chips


def test_the_name_of_a_tpu_counts_chips_and_for_v5p_cores() -> None:
    for hosts in TPU_HOSTS.values():
        for host in hosts:
            per_chip = 2 if host.chip == "v5p" else 1
            assert int(host.accelerator_type.rpartition("-")[2]) == host.chips * per_chip


@pytest.mark.parametrize(
    ("chip", "topology", "mesh", "problem"),
    [
        (
            "v5e",
            "auto",
            "4x4x1",
            "engine.mesh: 4x4x1 is 16 chips, and a worker of Dataflow is one host, with at most 8",
        ),
        ("v5p", "auto", "8x1x1", "at most 4 v5p chips (2x2x1)"),
        ("v5e", "auto", "4x4x4", "penstock run and penstock follow (docs/multi-host.md)"),
        ("v6e", "auto", "2x1x1", "v6e workers of Dataflow have 1x1 (1), 2x2 (4), 2x4 (8); make the mesh"),
        ("v5p", "auto", "1x1x1", "engine.mesh: 1x1x1 is 1 chip, and v5p workers of Dataflow have 2x2x1 (4)"),
        ("v5e", "auto", "2*2x1x1", "engine.mesh: 2*2x1x1 is several slices"),
        ("v5e", "2x2", "2x4x1", "runner.dataflow.topology: 2x2 is 4 chips, and engine.mesh 2x4x1 is 8"),
        ("v5e", "auto", "auto", "runner.dataflow.topology: name one of 1x1 (1), 2x2 (4), 2x4 (8)"),
    ],
)
def test_a_mesh_without_a_worker_is_refused(chip: str, topology: str, mesh: str, problem: str) -> None:
    with pytest.raises(JobError, match=re.escape(problem)):
        tpu_host(chip, topology, mesh)


def test_gpus_of_a_worker_are_those_of_the_mesh() -> None:
    assert gpu_option("nvidia-l4", "4x1x1").endswith("type:nvidia-l4;count:4;install-nvidia-driver")
    for mesh, problem in (("16", "at most 8"), ("auto", "how many GPUs"), ("2*2x1x1", "how many GPUs")):
        with pytest.raises(JobError, match=problem):
            gpu_option("nvidia-l4", mesh)


@pytest.mark.parametrize(
    ("accelerator", "machine", "mesh", "found"),
    [
        ("nvidia-tesla-a100", "auto", "1x1x1", "a2-highgpu-1g"),
        ("nvidia-a100-80gb", "auto", "2x2x1", "a2-ultragpu-4g"),
        ("nvidia-h100-80gb", "auto", "8", "a3-highgpu-8g"),
        ("nvidia-h100-80gb", "a3-highgpu-8g", "2x4x1", "a3-highgpu-8g"),
        ("nvidia-l4", "g2-standard-24", "2x1x1", "g2-standard-24"),
        ("cpu", "n2-standard-8", "4x1x1", "n2-standard-8"),
    ],
)
def test_the_machine_of_so_many_gpus(accelerator: str, machine: str, mesh: str, found: str) -> None:
    assert gpu_machine(accelerator, machine, mesh) == found


def test_a_machine_with_other_gpus_is_refused() -> None:
    with pytest.raises(JobError, match=r"engine.mesh: 2x1x1 is 2 GPUs, and a2-ultragpu-4g has 4; change one"):
        gpu_machine("nvidia-a100-80gb", "a2-ultragpu-4g", "2x1x1")
    with pytest.raises(JobError, match=re.escape("3 GPUs, and a3-highgpu-* machines have 1 or 2 or 4 or 8")):
        gpu_machine("nvidia-h100-80gb", "auto", "3x1x1")


def test_workers_look_for_the_chip_that_was_asked_for() -> None:
    assert with_chip(dataflow_job(accelerator="v6e")).engine.chip == "v6e"
    gpu = dataflow_job(accelerator="nvidia-l4", machine_type="g2-standard-8")
    assert with_chip(gpu) == gpu
    assert with_chip(dataflow_job(accelerator="nvidia-h100-80gb")).engine.chip == "h100"
    other = job({"name": "dataflow", "dataflow": DATAFLOW}, engine={"chip": "v6e"})
    with pytest.raises(JobError, match=r"engine.chip: is v6e, and runner.dataflow.accelerator is v5e"):
        with_chip(other)
