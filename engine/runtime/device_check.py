"""The devices of a worker against what its job says: found out before anything is loaded, and said in full.

What can be wrong: there are too few for the mesh; they are another chip than the plan was made for; a process has them
already; or jax, without the library for an accelerator, has quietly taken the CPU instead.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import re
from typing import Any

import jax

from engine.compilation.here import Devices
from engine.errors import WrongDevice
from engine.mesh import MeshShape
from engine.planning.chips import named_chip

logger = logging.getLogger(__name__)

_FIRST_GPU = "/dev/nvidia0"
_ONE_PROCESS = (
    "Only one process may use a TPU: let one worker process run on a machine (Dataflow: "
    "--experiments=no_use_multiple_sdk_containers; not Beam's multi_processing), and end what was left behind"
)
_BUSY = re.compile(r"Device or resource busy|already in use|lockfile", re.IGNORECASE)
_NO_LIBRARY = {
    "tpu": ("libtpu", "pip install 'penstock[tpu]'"),
    "gpu": ("jax_cuda13_plugin", "pip install 'penstock[cuda]'"),
}
_TPU_ENVIRONMENT = ("TPU_ACCELERATOR_TYPE", "TPU_TOPOLOGY", "TPU_CHIPS_PER_HOST_BOUNDS")
"""Set where TPUs are handed to a container or a virtual machine."""


def find_devices() -> Devices:
    """What there is. Raises WrongDevice if jax cannot have it, or has fallen back to the CPU of a worker with a TPU."""
    try:
        devices = jax.devices()
    except RuntimeError as error:
        raise WrongDevice(_refused(" ".join(str(error).split()))) from error
    found = Devices(devices[0].platform, devices[0].device_kind, len(devices), memory_stat(devices[0], "bytes_limit"))
    if found.platform == "cpu" and "cpu" not in os.environ.get("JAX_PLATFORMS", "").split(","):
        _refuse_fallback(found)
    return found


def _refuse_fallback(found: Devices) -> None:
    for name in _TPU_ENVIRONMENT:
        if os.environ.get(name):
            why = _missing("tpu") or f"{_ONE_PROCESS}. "
            raise WrongDevice(
                f"this worker has a TPU ({name}={os.environ[name]}), and jax found {found}. {why}To use the CPU, set "
                "JAX_PLATFORMS=cpu"
            )
    if os.path.exists(_FIRST_GPU):
        logger.warning("there is a GPU (%s), and jax found %s. %s", _FIRST_GPU, found, _missing("gpu"))


def check_devices(found: Devices, mesh: MeshShape, chip: str = "auto", dtype: str = "auto") -> None:
    """Raises WrongDevice unless the job's mesh and chip are there; logs what is right and yet a pity."""
    if chip != "auto" and found.chip != named_chip(chip):
        missing = _missing("tpu" if named_chip(chip).is_tpu else "gpu") if found.platform == "cpu" else ""
        raise WrongDevice(
            f"engine.chip is {chip}, and this worker has {found}. {missing}Run the job where {chip} is, plan it again "
            "for what is here (penstock plan), or set engine.chip: auto"
        )
    if found.count < mesh.chips:
        raise WrongDevice(
            f"engine.mesh {mesh} needs {mesh.chips} chips, and this worker has {found}. {_more(found, mesh)}"
        )
    if found.platform == "cpu":
        if dtype == "bfloat16":
            logger.warning("bfloat16 on a CPU takes longer than float32 (model.dtype)")
    elif found.count > mesh.chips:
        logger.warning("engine.mesh %s uses %d of %s; penstock plan says what to write", mesh, mesh.chips, found)


def _more(found: Devices, mesh: MeshShape) -> str:
    """How there could be enough."""
    if found.platform == "cpu":
        return (
            "Run it where they are; for a try on a CPU, "
            f"XLA_FLAGS=--xla_force_host_platform_device_count={mesh.chips} makes as many virtual ones"
        )
    return (
        f"Set engine.mesh to one of at most {found.count}, run on a machine with more, or hold the model on several "
        "hosts (engine.hosts)"
    )


def _refused(error: str) -> str:
    """Why jax could not have its devices, out of what the libraries say."""
    if _BUSY.search(error):
        return f"the device of this machine belongs to another process. {_ONE_PROCESS} ({error})"
    wanted = os.environ.get("JAX_PLATFORMS")
    asked = f" JAX_PLATFORMS={wanted} asks for it." if wanted else ""
    platform = "gpu" if "cuda" in error else "tpu" if "tpu" in error else None
    return f"jax cannot use its devices: {error}.{asked} {_missing(platform) if platform else ''}".rstrip()


def _missing(platform: str) -> str:
    """What to install, if the library for the platform is not there."""
    library, install = _NO_LIBRARY[platform]
    if importlib.util.find_spec(library):
        return ""
    return f"{library} is not installed in the worker's environment: {install}. "


def memory_stat(device: Any, name: str) -> int | None:
    """A figure of the device's allocator, such as "bytes_limit"; None where there is no such thing."""
    return (device.memory_stats() or {}).get(name) if device.platform != "cpu" else None
