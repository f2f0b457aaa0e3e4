"""Accelerators by name: what a chip computes, holds and moves, each number with its source.

Rates are what the vendor states, dense and per chip, never what a program reaches. A GB is 1e9 bytes, a GiB 2 ** 30. A
TPU's link is one of its torus, one way; an NVLink domain is a switch, so a GPU's `link` is all its links, one way.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from engine.errors import NoFeasiblePlan

_GIB = 2.0**30
_BOOK = "How to Scale Your Model (jax-ml/scaling-book), the tables of its chapters on TPUs and GPUs"
_CLOUD = "Google Cloud documentation, docs.cloud.google.com/tpu/docs/"
_FILLED = "fitted to the peaks of decode programs of libtpu 0.0.42.1 (tests/engine/planning/test_memory.py)"
_FUSED = "read in programs of libtpu 0.0.42.1, compiled with the options of engine/compilation/topology.py"
_LIMIT = "libtpu 0.0.42.1: what it says is available when it refuses a program"


@dataclass(frozen=True)
class Chip:
    """One accelerator."""

    name: str
    hbm_bytes: float
    hbm_bytes_per_second: float
    bf16_flops_per_second: float
    int8_ops_per_second: float
    link_bytes_per_second: float
    network_bytes_per_second: float
    """A chip's share of the data centre's network: to other slices or nodes."""
    source: str
    """Where all numbers were read that `other_sources` does not have."""
    other_sources: Mapping[str, str] = field(default_factory=dict, hash=False)
    """Field's name -> where it was read, with what was derived."""
    fp8_flops_per_second: float | None = None
    host_bytes_per_second: float | None = None
    """Between the host's memory and a chip's."""
    compiler_hbm_bytes: float | None = None
    """What the TPU compiler lets one program use on one device."""
    filled_on_chip_bytes: int = 0
    """What decode programs fill of a device's on-chip memory with weights and temporaries; the compiler counts it."""
    fused_gathers: bool = False
    """The compiler makes an asynchronous gather and a product one operation (engine/model/partition.py)."""
    devices: int = 1
    """As how many the chip shows itself to jax. Each has this part of the memory and of the rates."""
    pod: tuple[int, ...] = ()
    """The largest torus. Empty: chips are in switched domains."""
    host: tuple[int, ...] = ()
    """The piece of the torus that one host has."""
    wraps_every: int = 0
    """A torus axis closes to a ring if its size is a multiple of this."""
    domain: int = 0
    """GPUs behind one switch."""
    reads_filled_pages: bool = False
    """Whether a step of decode reads only what is filled of the cache; accelerators read all there is room for."""

    def __post_init__(self) -> None:
        unknown = self.other_sources.keys() - vars(self).keys()
        assert not unknown, f"{self.name}: sources of what is no field: {unknown}"

    def source_of(self, number: str) -> str:
        """Where the number in this field was read."""
        return self.other_sources.get(number, self.source)

    def flops_per_second(self, weights: str) -> float:
        """Of products with weights in this dtype. Those in fp8 take fp8 activations where the chip has such products;
        all others are computed in bfloat16, as the engine does."""
        return (self.fp8_flops_per_second if weights == "fp8" else None) or self.bf16_flops_per_second

    @property
    def is_tpu(self) -> bool:
        return bool(self.pod)

    def is_ring(self, axis_chips: int) -> bool:
        """Whether a torus axis of this many chips has wrap-around links."""
        return bool(self.wraps_every) and axis_chips % self.wraps_every == 0


_ALL = (
    Chip(
        name="v3",
        hbm_bytes=32e9,
        hbm_bytes_per_second=9.0e11,
        bf16_flops_per_second=1.4e14,
        int8_ops_per_second=1.4e14,
        link_bytes_per_second=1e11,
        network_bytes_per_second=6.25e9,
        host_bytes_per_second=1.6e10,
        source=_BOOK,
        other_sources={"wraps_every": "assumed to be a whole pod's axis, as it is on v5e"},
        pod=(32, 32),
        host=(4, 2),
        wraps_every=32,
    ),
    Chip(
        name="v4",
        hbm_bytes=32 * _GIB,
        hbm_bytes_per_second=1.2e12,
        bf16_flops_per_second=2.75e14,
        int8_ops_per_second=2.75e14,
        link_bytes_per_second=4.5e10,
        network_bytes_per_second=6.25e9,
        host_bytes_per_second=1.6e10,
        source=_BOOK,
        other_sources={
            "hbm_bytes": _CLOUD + "v4; Pope et al. 2022, section 4",
            "compiler_hbm_bytes": _LIMIT,
            "filled_on_chip_bytes": _FILLED,
        },
        compiler_hbm_bytes=30.75 * _GIB,
        filled_on_chip_bytes=96 * 2**20,
        pod=(16, 16, 16),
        host=(2, 2, 1),
        wraps_every=4,
    ),
    Chip(
        name="v5e",
        hbm_bytes=16e9,
        hbm_bytes_per_second=8.1e11,
        bf16_flops_per_second=1.97e14,
        int8_ops_per_second=3.94e14,
        link_bytes_per_second=4.5e10,
        network_bytes_per_second=3.125e9,
        host_bytes_per_second=1.6e10,
        source=_BOOK,
        other_sources={"compiler_hbm_bytes": _LIMIT, "filled_on_chip_bytes": _FILLED, "fused_gathers": _FUSED},
        compiler_hbm_bytes=15.75 * _GIB,
        filled_on_chip_bytes=112 * 2**20,
        fused_gathers=True,
        pod=(16, 16),
        host=(4, 2),
        wraps_every=16,
    ),
    Chip(
        name="v5p",
        hbm_bytes=96e9,
        hbm_bytes_per_second=2.8e12,
        bf16_flops_per_second=4.59e14,
        int8_ops_per_second=9.18e14,
        link_bytes_per_second=9e10,
        network_bytes_per_second=6.25e9,
        host_bytes_per_second=1.6e10,
        source=_BOOK,
        other_sources={"compiler_hbm_bytes": _LIMIT, "filled_on_chip_bytes": _FILLED, "fused_gathers": _FUSED},
        compiler_hbm_bytes=95.74 * _GIB,
        filled_on_chip_bytes=34 * 2**20,
        fused_gathers=True,
        pod=(16, 20, 28),
        host=(2, 2, 1),
        wraps_every=4,
    ),
    Chip(
        name="v6e",
        hbm_bytes=32e9,
        hbm_bytes_per_second=1.6e12,
        bf16_flops_per_second=9.20e14,
        int8_ops_per_second=1.84e15,
        link_bytes_per_second=9e10,
        network_bytes_per_second=12.5e9,
        host_bytes_per_second=3.2e10,
        source=_BOOK,
        other_sources={"compiler_hbm_bytes": _LIMIT, "filled_on_chip_bytes": _FILLED, "fused_gathers": _FUSED},
        compiler_hbm_bytes=31.25 * _GIB,
        filled_on_chip_bytes=94 * 2**20,
        fused_gathers=True,
        pod=(16, 16),
        host=(4, 2),
        wraps_every=16,
    ),
    Chip(
        name="tpu7x",
        hbm_bytes=192 * _GIB,
        hbm_bytes_per_second=7.38e12,
        bf16_flops_per_second=2.307e15,
        int8_ops_per_second=4.614e15,
        fp8_flops_per_second=4.614e15,
        link_bytes_per_second=1e11,
        network_bytes_per_second=12.5e9,
        source=_CLOUD + "tpu7x",
        other_sources={
            "int8_ops_per_second": _CLOUD + "tpu7x states fp8 alone; that int8 is as fast is assumed",
            "link_bytes_per_second": _CLOUD + "tpu7x: 1200 GB/s a chip both ways, over six links",
            "compiler_hbm_bytes": _LIMIT,
            "fused_gathers": "as on v5p; no program of this chip was looked at",
            "pod": _CLOUD + "tpu7x: 9216 chips; that they form 16x24x24 is assumed",
        },
        compiler_hbm_bytes=94.75 * _GIB,
        fused_gathers=True,
        devices=2,
        pod=(16, 24, 24),
        host=(2, 2, 1),
        wraps_every=4,
    ),
    Chip(
        name="a100",
        hbm_bytes=80e9,
        hbm_bytes_per_second=2.0e12,
        bf16_flops_per_second=3.1e14,
        int8_ops_per_second=6.2e14,
        link_bytes_per_second=300e9,
        network_bytes_per_second=400e9 / 8,
        source=_BOOK,
        domain=8,
    ),
    Chip(
        name="h100",
        hbm_bytes=80e9,
        hbm_bytes_per_second=3.35e12,
        bf16_flops_per_second=9.9e14,
        int8_ops_per_second=2.0e15,
        fp8_flops_per_second=2.0e15,
        link_bytes_per_second=450e9,
        network_bytes_per_second=400e9 / 8,
        source=_BOOK,
        domain=8,
    ),
    Chip(
        name="h200",
        hbm_bytes=141e9,
        hbm_bytes_per_second=4.8e12,
        bf16_flops_per_second=9.9e14,
        int8_ops_per_second=2.0e15,
        fp8_flops_per_second=2.0e15,
        link_bytes_per_second=450e9,
        network_bytes_per_second=400e9 / 8,
        source=_BOOK,
        domain=8,
    ),
    Chip(
        name="b200",
        hbm_bytes=192e9,
        hbm_bytes_per_second=8.0e12,
        bf16_flops_per_second=2.3e15,
        int8_ops_per_second=4.5e15,
        fp8_flops_per_second=4.5e15,
        link_bytes_per_second=900e9,
        network_bytes_per_second=400e9 / 8,
        source=_BOOK,
        domain=8,
    ),
)

CHIPS: dict[str, Chip] = {chip.name: chip for chip in _ALL}

_ALSO_CALLED = {"v5litepod": "v5e", "v5lite": "v5e", "trillium": "v6e", "v7x": "tpu7x", "ironwood": "tpu7x"}


def named_chip(name: str) -> Chip:
    """The chip of this name, however it is capitalised; also by the names its maker sells it under."""
    key = name.lower()
    chip = CHIPS.get(_ALSO_CALLED.get(key, key))
    if chip is None:
        raise NoFeasiblePlan(f"no chip is known by the name {name!r}; there are {', '.join(CHIPS)}")
    return chip
