"""The chip table: that it is whole, and that its numbers agree with one another and with what they were read from."""

from __future__ import annotations

import math

import pytest

from engine.errors import NoFeasiblePlan
from engine.planning.chips import CHIPS, Chip, named_chip

GIB = 2**30


@pytest.mark.parametrize("chip", CHIPS.values(), ids=lambda chip: chip.name)
def test_every_number_is_there_with_a_source(chip: Chip) -> None:
    numbers = {name: value for name, value in vars(chip).items() if isinstance(value, (int, float))}
    assert {"hbm_bytes", "hbm_bytes_per_second", "bf16_flops_per_second", "link_bytes_per_second"} <= numbers.keys()
    for name, value in numbers.items():
        assert value >= 0, name
        assert len(chip.source_of(name)) > 10, name
    assert bool(chip.pod) != bool(chip.domain)
    assert chip.is_tpu == bool(chip.host)


@pytest.mark.parametrize("chip", [chip for chip in CHIPS.values() if chip.compiler_hbm_bytes], ids=lambda c: c.name)
def test_the_compiler_leaves_most_of_the_memory(chip: Chip) -> None:
    assert chip.compiler_hbm_bytes is not None
    # v5e and v6e are sold as 16 and 32 GB, and have as many GiB.
    assert 0.93 * chip.hbm_bytes < chip.compiler_hbm_bytes * chip.devices < 1.08 * chip.hbm_bytes


def test_pope_et_al_s_chip() -> None:
    """Pope et al. 2022, section 4: 275 TFLOP/s, 32 GiB at 1200 GB/s, 270 GB/s of links in all."""
    v4 = named_chip("v4")
    assert (v4.bf16_flops_per_second, v4.hbm_bytes, v4.hbm_bytes_per_second) == (275e12, 32 * GIB, 1200e9)
    assert v4.link_bytes_per_second * 2 * len(v4.pod) == 270e9


@pytest.mark.parametrize(
    ("name", "batch"),
    [("v5e", 243), ("v5p", 164), ("h100", 296)],
)
def test_the_batch_from_which_a_product_is_bound_by_compute(name: str, batch: int) -> None:
    """The scaling book's B_crit for bf16: FLOP/s over bytes/s (v5e "about 240")."""
    chip = named_chip(name)
    assert math.isclose(chip.bf16_flops_per_second / chip.hbm_bytes_per_second, batch, rel_tol=0.01)


def test_rings() -> None:
    assert [named_chip("v4").is_ring(size) for size in (2, 4, 6, 8)] == [False, True, False, True]
    assert [named_chip("v5e").is_ring(size) for size in (4, 8, 16)] == [False, False, True]
    assert not named_chip("h100").is_ring(8)


def test_names() -> None:
    assert named_chip("V4") is CHIPS["v4"]
    assert named_chip("Trillium") is CHIPS["v6e"]
    with pytest.raises(NoFeasiblePlan, match=r"'v9'.*v3, v4, v5e, v5p, v6e, tpu7x, a100, h100, h200, b200"):
        named_chip("v9")
