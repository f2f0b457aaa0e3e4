"""What is said when a worker's devices are not those of its job."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import pytest

from engine.compilation.here import Devices
from engine.errors import NoFeasiblePlan, OutOfMemory, WrongDevice
from engine.mesh import MeshShape
from engine.runtime import device_check
from engine.runtime.device_check import check_devices, find_devices
from engine.runtime.engine import Engine
from engine.runtime.loading import ModelAsked
from tests.engine.tiny_checkpoint import write_tiny_checkpoint

CPU = Devices("cpu", "cpu", 1)
V6E = Devices("tpu", "TPU v6 lite", 4, int(31.25 * 2**30))
GPU = Devices("gpu", "NVIDIA H100 80GB HBM3", 1)


@dataclass
class Device:
    platform: str = "tpu"
    device_kind: str = "TPU v5 lite"

    def memory_stats(self) -> dict[str, int]:
        return {"bytes_limit": 2**34}


@pytest.fixture
def finds(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Has jax find these devices, or raise this."""

    def set_found(found: Any) -> None:
        def devices() -> Any:
            if isinstance(found, Exception):
                raise found
            return found

        monkeypatch.setattr(jax, "devices", devices)

    for name in (*device_check._TPU_ENVIRONMENT, "JAX_PLATFORMS"):
        monkeypatch.delenv(name, raising=False)
    return set_found


@pytest.mark.parametrize(
    ("found", "mesh", "chip", "said"),
    [
        (CPU, "4x4", "auto", r"mesh 4x4x1 needs 16 chips, and this worker has 1 device of cpu, cpu\. .*count=16 makes"),
        (V6E, "2x4", "auto", r"needs 8 chips, .* 4 devices of tpu, TPU v6 lite \(v6e\), 31.2 GiB each\. .*at most 4"),
        (V6E, "2x2", "v5e", r"engine.chip is v5e, and this worker has 4 devices of tpu, TPU v6 lite \(v6e\)"),
        (GPU, "1", "h200", r"engine.chip is h200, .*H100 80GB HBM3 \(h100\)\. Run the job where h200 is"),
        (Devices("gpu", "NVIDIA T4", 1), "1", "h100", r"engine.chip is h100, .*NVIDIA T4\. "),
    ],
)
def test_what_does_not_do(found: Devices, mesh: str, chip: str, said: str) -> None:
    with pytest.raises(WrongDevice, match=said):
        check_devices(found, MeshShape.parse(mesh), chip)


@pytest.mark.parametrize(
    ("chip", "library", "install"), [("v5e", "libtpu", "penstock[tpu]"), ("h100", "jax_cuda13_plugin", "[cuda]")]
)
def test_a_library_that_is_missing_is_named(monkeypatch, chip: str, library: str, install: str) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(WrongDevice) as caught:
        check_devices(CPU, MeshShape(), chip)
    assert f"{library} is not installed" in str(caught.value)
    assert install in str(caught.value)


def test_what_is_right_and_what_is_a_pity(caplog) -> None:
    check_devices(V6E, MeshShape.parse("2x2"), "v6e", "bfloat16")
    check_devices(V6E, MeshShape.parse("2x2"), "Trillium")
    check_devices(CPU, MeshShape(), dtype="float32")
    assert not caplog.text
    check_devices(V6E, MeshShape())
    assert "engine.mesh 1x1x1 uses 1 of 4 devices of tpu" in caplog.text
    check_devices(CPU, MeshShape(), dtype="bfloat16")
    assert "bfloat16 on a CPU takes longer" in caplog.text


def test_a_worker_with_a_tpu_must_not_run_on_its_cpu(finds, monkeypatch) -> None:
    finds([Device("cpu", "cpu")])
    assert find_devices().platform == "cpu"
    monkeypatch.setenv("TPU_ACCELERATOR_TYPE", "v5litepod-4")
    with pytest.raises(WrongDevice, match=r"has a TPU \(TPU_ACCELERATOR_TYPE=v5litepod-4\), and jax found 1 device of"):
        find_devices()
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    assert find_devices().platform == "cpu"


def test_a_gpu_that_jax_does_not_see_is_pointed_out(finds, monkeypatch, caplog, tmp_path: Path) -> None:
    finds([Device("cpu", "cpu")])
    (tmp_path / "nvidia0").touch()
    monkeypatch.setattr(device_check, "_FIRST_GPU", str(tmp_path / "nvidia0"))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    find_devices()
    assert "there is a GPU" in caplog.text
    assert "penstock[cuda]" in caplog.text


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (
            "Unable to initialize backend 'tpu': UNKNOWN: TPU initialization failed: open(/dev/vfio/0): Device or "
            "resource busy: Device or resource busy; Couldn't open iommu group /dev/vfio/0 (set JAX_PLATFORMS='' to "
            "automatically choose an available backend)",
            r"belongs to another process\. Only one process may .*no_use_multiple_sdk_containers.*\(Unable to init",
        ),
        (
            "Unable to initialize backend 'tpu': ABORTED: The TPU is already in use by process with pid 1234.",
            r"belongs to another process.*pid 1234",
        ),
        ("Unable to initialize backend 'cuda': no driver", r"jax cannot use its devices: Unable .*no driver"),
    ],
)
def test_why_jax_could_not_have_its_devices(finds, error: str, said: str) -> None:
    finds(RuntimeError(error))
    with pytest.raises(WrongDevice, match=said):
        find_devices()


def test_devices_are_checked_before_anything_is_read(tmp_path: Path) -> None:
    with pytest.raises(WrongDevice, match="needs 64 chips, and this worker has 8 devices of cpu"):
        Engine.load(str(tmp_path / "absent"), mesh="4x4x4")
    with pytest.raises(WrongDevice, match=r"engine\.chip is v5e"):
        Engine.load(str(tmp_path / "absent"), chip="v5e")
    with pytest.raises(NoFeasiblePlan, match="no chip is known by the name 'v99'"):
        Engine.load(str(tmp_path / "absent"), chip="v99")


def test_weights_that_do_not_fit_after_all(tmp_path: Path, monkeypatch) -> None:
    def full(self: ModelAsked) -> None:
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 4 bytes")

    monkeypatch.setattr(ModelAsked, "load", full)
    with pytest.raises(OutOfMemory, match=r"while the weights were loaded: hold them as int8 .*allocating 4 bytes"):
        Engine.load(str(tmp_path))


def test_weights_that_cannot_fit_are_not_read(tmp_path: Path, finds) -> None:
    write_tiny_checkpoint(tmp_path)
    found = Device("tpu", "TPU v5 lite")
    found.memory_stats = lambda: {"bytes_limit": 2**16}  # type: ignore[method-assign]
    finds([found])
    with pytest.raises(OutOfMemory, match=r"at least .* GiB of each chip in float32 on a mesh of 1x1x1, and each has"):
        Engine.load(str(tmp_path), dtype="float32")
