"""A pipeline over slices, as it is counted, timed and planned (docs/partitioning.md has the formulas)."""

from __future__ import annotations

from dataclasses import replace

import pytest

from engine.errors import NoFeasiblePlan
from engine.layout import AttentionSharding, Feedforward, Layouts
from engine.mesh import MeshShape
from engine.planning.chips import named_chip
from engine.planning.cost import cost
from engine.planning.counts import counts
from engine.planning.named_models import named_model
from engine.planning.planner import Asked, Pinned, candidates, search
from engine.planning.program import Phase, Program
from engine.planning.slices import Slice

PALM = replace(named_model("palm-540b"), heads=64)
WS2D: tuple[Feedforward, AttentionSharding] = ("ws2d", "batch")


def program(mesh: str, phase: Phase, rows: int, how: tuple[Feedforward, AttentionSharding] = WS2D) -> Program:
    return Program(PALM, named_chip("v4"), Layouts.of(MeshShape.parse(mesh), how, how), phase, rows, 2048)


def test_a_tick_of_decode_is_a_step_of_a_stage_with_its_group_of_slots() -> None:
    """Half the layers of half the slots, twice: all is done once, but weights are read twice, and the head."""
    two, one = counts(program("2*4x4x4", "decode", 1024)), counts(program("4x4x4", "decode", 512))
    head = 2 * 512 * PALM.vocab * PALM.embed / 64
    assert two.matmul_flops == pytest.approx(one.matmul_flops + head)  # twice half the layers, and the head twice
    assert two.kv_bytes == pytest.approx(one.kv_bytes)
    head_bytes = 2 * PALM.vocab * PALM.embed / 64
    assert two.weight_bytes == pytest.approx(one.weight_bytes + head_bytes, rel=1e-3)  # norms are read by every stage
    assert two.model_flops == 2 * one.model_flops


def test_prefill_idles_while_the_pipeline_fills_and_drains() -> None:
    """8 micro-batches take 9 ticks on two slices; every tick of a stage reads its weights and takes half the layers."""
    two, whole = program("2*4x4x4", "prefill", 512), program("4x4x4", "prefill", 512)
    assert (two.pieces, two.ticks) == (8, 9)
    ratio = counts(two).matmul_flops / counts(whole).matmul_flops
    assert ratio == pytest.approx(9 / 8 / 2 * 118 / 117, rel=0.01)  # on one slice the last layer is keys and values


def test_what_crosses_between_slices_is_the_residual_stream() -> None:
    """[tokens / chips, E] in bf16 every tick, at the network's rate: 75.5 MB, 12 ms (docs/partitioning.md)."""
    two = program("2*4x4x4", "prefill", 512)
    crossing = [one for one in counts(two).sent if one.axes == ("slice",)]
    assert [(one.kind, one.times) for one in crossing] == [("collective-permute", 9)]
    assert crossing[0].wire_bytes / 9 == 512 / 8 * 2048 / 64 * PALM.embed * 2
    slow = replace(two, chip=replace(two.chip, network_bytes_per_second=6.25e8))
    longer = cost(slow).parts["collectives"] - cost(two).parts["collectives"]
    ideal = crossing[0].wire_bytes / 6.25e9
    assert ideal / 9 == pytest.approx(12e-3, rel=0.01)
    assert longer == pytest.approx(9 * ideal / 0.551)


def test_a_pipeline_is_planned_where_one_slice_is_too_small() -> None:
    """405B in bfloat16: 811 GB, where eight H100 have 640."""
    pinned = Pinned(ffn="ws2d", attention="heads")
    asked = Asked(named_model("llama-3.1-405b"), "decode", 64, 2048, pinned=pinned)
    assert not any(plan.fits for plan in candidates(asked, Slice.parse("h100:8")))
    best = search(asked, [Slice.parse("2*h100:8")]).plans[0]
    assert (str(best.on), best.layout.mesh.slices, best.on.chips) == ("2*h100:8", 2, 16)
    assert best.memory.weights < 80e9 < 2 * 405e9 / 8


def test_layers_that_do_not_divide_are_said() -> None:
    pinned = Pinned(MeshShape(4, 4, 4, 4), "ws2d", "batch")
    with pytest.raises(NoFeasiblePlan, match="layers=118 do not divide over 4 slices"):
        search(Asked(named_model("palm-540b"), "decode", 256, 2048, pinned=pinned), [Slice.parse("4*v4:4x4x4")])
    with pytest.raises(NoFeasiblePlan, match=r"not split over the network.*such as 2\*h100:8"):
        Slice.parse("h100:16")
