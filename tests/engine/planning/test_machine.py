"""A measured machine: as a file, as a chip, and in the timing model."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from engine.errors import NoFeasiblePlan
from engine.layout import Layouts
from engine.planning.calibration import calibration_of
from engine.planning.cost import cost
from engine.planning.counts import counts
from engine.planning.machine import Machine, Rates
from engine.planning.named_models import named_model
from engine.planning.program import Program
from engine.planning.slices import Slice

MACHINE = Machine(
    name="x",
    cores=2,
    memory_bytes=2**34,
    products={"float32": Rates(2e11, 2e10), "int8": Rates(3e11, 1e10)},
    pass_seconds=1e-4,
    layer_seconds=1e-5,
    row_seconds=2e-6,
    position_seconds=1e-8,
    logit_seconds=1e-9,
    cache_bytes_per_second=5e9,
    vector_bytes_per_second=8e9,
    error_fraction=0.1,
)


def test_it_is_read_as_it_was_written() -> None:
    assert Machine.from_json(MACHINE.to_json()) == MACHINE


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"version": 0}', MACHINE.to_json().replace('"cores"', '"chores"')])
def test_what_is_no_profile_is_refused(text: str) -> None:
    with pytest.raises(NoFeasiblePlan, match="penstock profile"):
        Machine.from_json(text)


def test_a_dtype_that_was_not_measured_is_refused() -> None:
    with pytest.raises(NoFeasiblePlan, match=r"bfloat16.*float32, int8"):
        MACHINE.chip("bfloat16")


def test_a_step_takes_what_its_parts_were_measured_to_take() -> None:
    """Nothing hides under anything: so the parts were told apart."""
    config = replace(named_model("llama-2-7b"), layers=3)
    program = Program(config, MACHINE.chip("int8"), Layouts(), "decode", 16, 100, "int8")
    done, found = counts(program), cost(program, calibration=MACHINE.calibration("int8"))
    by_hand = (
        done.flops / 3e11
        + done.weight_bytes / 1e10
        + done.kv_bytes / 5e9
        + done.vector_bytes / 8e9
        + 1e-4
        + 3 * (1e-5 + 16 * (2e-6 + 100 * 1e-8))
        + 16 * config.vocab * 1e-9
    )
    assert found.seconds == pytest.approx(by_hand, rel=1e-12)
    assert math.fsum(found.bound_by.values()) == pytest.approx(1)
    assert found.error_fraction == 0.1


def test_prefill_has_no_rows_that_step() -> None:
    config = named_model("llama-2-7b")
    program = Program(config, MACHINE.chip("float32"), Layouts(), "prefill", 2, 128, "float32")
    done = counts(program)
    by_hand = done.flops / 2e11 + done.weight_bytes / 2e10 + done.vector_bytes / 8e9 + 1e-4 + config.layers * 1e-5
    assert cost(program, calibration=MACHINE.calibration("float32")).seconds == pytest.approx(by_hand, rel=1e-12)


@pytest.mark.parametrize("chips", ["v4:2x2x4", "2*v5e:2x2", "h100:8", "machine"])
def test_a_corrected_calibration_makes_every_time_as_many_times_as_long(chips: str) -> None:
    config = named_model("llama-2-7b")
    on = Slice(MACHINE.chip("int8"), (1,)) if chips == "machine" else Slice.parse(chips)
    constants = MACHINE.calibration("int8") if chips == "machine" else calibration_of(on.chip.name)
    for phase, tokens in (("prefill", 512), ("decode", 512)):
        program = Program(config, on.chip, Layouts.asked(config.kv_heads, str(on.mesh)), phase, 16, tokens, "int8")
        before, after = (cost(program, calibration=some) for some in (constants, constants.times(3.0, 0.5)))
        assert after.seconds == pytest.approx(3 * before.seconds)
        assert after.bound_by == pytest.approx(before.bound_by)
        assert after.parts == {name: pytest.approx(3 * seconds) for name, seconds in before.parts.items()}
