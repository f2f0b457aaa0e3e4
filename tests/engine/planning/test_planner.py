"""The search for a phase: what it finds is possible, and nothing that it leaves out is better."""

from __future__ import annotations

import itertools
import math
import random
from dataclasses import replace

import pytest

from engine.errors import NoFeasiblePlan
from engine.layout import Layouts, check_divides
from engine.mesh import MeshShape
from engine.planning.frontier import frontier
from engine.planning.named_models import named_model
from engine.planning.planner import Asked, DoesNotFit, PhasePlan, Pinned, candidates, rows_of, search, sweep
from engine.planning.program import Program
from engine.planning.slices import Slice, named_slices

PALM = named_model("palm-540b")
SMALL = named_model("llama-3.1-8b")


def everything(asked: Asked, on: Slice) -> list[PhasePlan]:
    """All that divides and fits, over all meshes and layouts, however alike or hopeless."""
    found = []
    ffns, attentions = ("ws1d", "ws2d", "wg-x", "wg-xy", "wg-xyz"), ("heads", "batch", "sequence")
    for (mesh, wraps), ffn, attention in itertools.product(on.meshes.items(), ffns, attentions):
        layouts = Layouts.of(mesh, (ffn, attention), (ffn, attention))
        try:
            check_divides(asked.config, layouts)
        except NoFeasiblePlan:
            continue
        if rows := rows_of(asked, layouts):
            program = Program(asked.config, on.chip, layouts, asked.phase, rows, asked.context_tokens)
            found.append(PhasePlan(on, asked, program, wraps))
    return [plan for plan in found if plan.fits]


@pytest.mark.parametrize(
    ("model", "chips", "phase", "batch", "context"),
    [
        ("llama-3.1-8b", "v5e:2x2", "decode", 32, 4096),
        ("llama-3.1-70b", "v5p:2x2x1", "prefill", 16, 1024),
    ],
)
def test_nothing_that_is_left_out_is_better(model: str, chips: str, phase: str, batch: int, context: int) -> None:
    asked = Asked(named_model(model), phase, batch, context)  # pyright: ignore[reportArgumentType]
    on = Slice.parse(chips)
    plans = search(asked, [on]).plans
    best = min(everything(asked, on), key=lambda plan: plan.seconds)
    assert plans[0].seconds <= best.seconds * 1.025  # the torus as it is wins near ties
    for one, slower in itertools.pairwise(plans):
        assert one.rank <= slower.rank
    assert len({plan.choice for plan in plans}) == len(plans)


@pytest.mark.parametrize("phase", ["prefill", "decode"])
def test_every_plan_is_possible(phase: str) -> None:
    asked = Asked(SMALL, phase, 64, 2048)  # pyright: ignore[reportArgumentType]
    slices = named_slices("v5e:1x1,v5e:2x4,tpu7x:2x2x1,h100:4", 16)
    found = search(asked, slices)
    assert {plan.on for plan in found.plans} == {on for on in slices if str(on) != "v5e:1x1"}  # 16 GB of weights
    for plan in found.plans:
        check_divides(SMALL, plan.program.layouts)
        assert plan.layout.mesh.chips == plan.on.chips * plan.on.chip.devices
        assert plan.memory.peak <= plan.on.limit_bytes
        assert plan.program.rows >= 64
        assert plan.program.tokens % plan.layout.mesh.chips == 0
        assert 0 < plan.mfu < 1
        assert plan.seconds * plan.on.chips == pytest.approx(plan.chip_seconds_per_token * plan.tokens)
    assert all(plan.memory.peak > plan.on.limit_bytes for plan in found.too_large)


def test_slots_are_filled_up_and_do_not_count() -> None:
    plan = search(Asked(SMALL, "decode", 9, 1024), [Slice.parse("v5e:4x4")]).plans[0]
    assert (plan.program.rows, plan.tokens) == (16, 9)
    assert plan.mfu == pytest.approx(plan.cost.mfu * 9 / 16)


@pytest.mark.parametrize(
    "pinned",
    [
        Pinned(mesh=MeshShape(2, 4, 2)),
        Pinned(ffn="wg-x"),
        Pinned(attention="sequence"),
        Pinned(MeshShape(1, 16, 1), "ws2d", "heads"),
        Pinned(MeshShape(16, 1, 1), "ws1d", "batch"),
    ],
)
def test_what_is_pinned_stays(pinned: Pinned) -> None:
    plans = search(Asked(SMALL, "decode", 64, 1024, pinned=pinned), [Slice.parse("v5e:4x4")]).plans
    for plan in plans:
        for name in ("mesh", "ffn", "attention"):
            assert getattr(pinned, name) in (None, getattr(plan.choice, name))


def test_a_sweep_finds_what_each_batch_alone_finds() -> None:
    slices, batches = named_slices("v5e:2x2", 8), (1, 16, 256)
    asked = Asked(SMALL, "decode", 1, 4096)
    swept = sweep(asked, slices, batches).plans
    for on, batch in itertools.product(slices, batches):
        some = [plan for plan in swept if plan.on == on and plan.asked.batch == batch]
        if not some:
            with pytest.raises(DoesNotFit):
                search(replace(asked, batch=batch), [on])
        else:
            best = search(replace(asked, batch=batch), [on]).plans[0]
            assert some[0].seconds <= best.seconds * 1.01, (on, batch)


def test_no_plan_says_what_binds_and_what_would_help() -> None:
    asked, on = Asked(PALM, "decode", 1024, 8192), Slice.parse("v4:4x4x4")
    with pytest.raises(DoesNotFit) as refused:
        search(asked, [on])
    said = str(refused.value)
    assert "What binds is weights" in said
    assert refused.value.nearest.memory.peak > on.limit_bytes
    changes = {
        "an int8 cache": replace(asked, kv="int8"),
        "int8 weights": replace(asked, weights="int8"),
        "a batch of 512": replace(asked, batch=512),
        "a batch of 256": replace(asked, batch=256),
        "a context of 4096 tokens": replace(asked, context_tokens=4096),
        "a context of 2048 tokens": replace(asked, context_tokens=2048),
    }
    proposed = [change for change in changes if change in said]
    fitting = [change for change, changed in changes.items() if any(plan.fits for plan in candidates(changed, on))]
    assert fitting == list(changes)
    assert proposed == ["an int8 cache", "int8 weights", "a batch of 512", "a context of 4096 tokens"]  # the smallest
    assert "v4:4x4x12" in said or "v4:4x8x8" in said or "v4:4x4x8" in said


def test_weights_that_are_too_large_bind() -> None:
    with pytest.raises(DoesNotFit, match=r"What binds is weights. It would fit with int8 weights.*v5e:2x2 \(4 chips\)"):
        search(Asked(SMALL, "decode", 8, 8192), [Slice.parse("v5e:1x1")])


def test_what_does_not_divide() -> None:
    pinned = Pinned(mesh=MeshShape(1, 48, 1))
    with pytest.raises(NoFeasiblePlan, match="ffn=14336 is not a multiple of Y = 48; the nearest mesh"):
        search(Asked(SMALL, "decode", 48, 1024, pinned=pinned), [Slice.parse("v5p:4x4x3")])
    with pytest.raises(NoFeasiblePlan, match="3 x 100 tokens divides over no mesh of v5e:4x4"):
        search(Asked(SMALL, "prefill", 3, 100, pinned=Pinned(attention="sequence")), [Slice.parse("v5e:4x4")])


def test_prompts_are_filled_up_and_do_not_count() -> None:
    plan = search(Asked(SMALL, "prefill", 3, 100), [Slice.parse("v5e:4x4")]).plans[0]
    assert (plan.program.rows, plan.tokens) == (4, 300)
    assert plan.mfu == pytest.approx(plan.cost.mfu * 3 / 4)


def test_the_frontier_is_what_nothing_beats() -> None:
    rng = random.Random(3)
    plans = [(rng.randint(1, 30), rng.randint(1, 30)) for _ in range(200)]
    front = frontier(plans, seconds=lambda plan: plan[0], cost=lambda plan: plan[1])
    assert front == sorted(set(front))
    assert [cost for _, cost in front] == sorted({cost for _, cost in front}, reverse=True)
    for plan in plans:
        assert any(seconds <= plan[0] and cost <= plan[1] for seconds, cost in front)
    for one in front:
        assert not any(math.prod((a <= b for a, b in zip(plan, one, strict=True))) and plan != one for plan in plans)
