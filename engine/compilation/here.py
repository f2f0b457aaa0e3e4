"""What this machine computes on: its accelerators as jax names them, or its processor.

jax is imported only where it is asked.
"""

from __future__ import annotations

import glob
import os
import re
from dataclasses import dataclass

from engine.compilation.topology import FACTS
from engine.planning.chips import CHIPS, Chip

_FILES = ("/dev/accel[0-9]*", "/dev/vfio/[0-9]*", "/dev/nvidia[0-9]*", "/dev/dxg", "/dev/kfd")
"""One of them is there where a TPU or a GPU is."""
_ALSO = {"TPU v3": "v3", "TPU v5e": "v5e", "TPU v5p": "v5p", "TPU v6e": "v6e"}
_KINDS = {facts.device_kind: name for name, facts in FACTS.items()} | _ALSO


@dataclass(frozen=True)
class Devices:
    """What jax found, in all processes that compute together."""

    platform: str
    """cpu, gpu or tpu."""
    kind: str
    count: int
    memory_bytes: int | None = None
    """Of each, if it tells."""

    @property
    def chip(self) -> Chip | None:
        """The chip they are of, if it is known."""
        return chip_of(self.kind)

    def __str__(self) -> str:
        chip = f" ({self.chip.name})" if self.chip else ""
        memory = f", {self.memory_bytes / 2**30:.1f} GiB each" if self.memory_bytes else ""
        return f"{self.count} device{'s' * (self.count != 1)} of {self.platform}, {self.kind}{chip}{memory}"


def devices_here() -> Devices:
    """Takes hold of the accelerators, for this process and as long as it lives."""
    import jax

    devices = jax.devices()
    return Devices(devices[0].platform, devices[0].device_kind, len(devices))


def is_processor_alone() -> bool:
    """Whether there is surely no accelerator that jax would use; asks no device."""
    return os.environ.get("JAX_PLATFORMS", "").lower() == "cpu" or not any(map(glob.glob, _FILES))


def chip_of(device_kind: str) -> Chip | None:
    """By the name that jax gives a device: "TPU v5 lite", "NVIDIA H100 80GB HBM3"."""
    if device_kind in _KINDS:
        return CHIPS[_KINDS[device_kind]]
    words = re.findall(r"[a-z]+\d+", device_kind.lower())
    return next((chip for name, chip in CHIPS.items() if name in words and not chip.is_tpu), None)
