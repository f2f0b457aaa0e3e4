"""Plans of whole jobs: possible, as pinned, and chosen by the goal."""

from __future__ import annotations

import math
from dataclasses import replace
from random import Random

import pytest

from engine.errors import NoFeasiblePlan
from engine.layout import check_divides
from engine.mesh import MeshShape
from engine.planning.batching import Workload, play
from engine.planning.buckets import bucket_rows, slot_rows
from engine.planning.cost import cost
from engine.planning.frontier import frontier
from engine.planning.job_cost import JobAsked, JobDoesNotFit, JobPlan
from engine.planning.job_planner import choose, job_plans
from engine.planning.named_models import named_model
from engine.planning.planner import Pinned
from engine.planning.program import Program
from engine.planning.slices import Slice, named_slices

RNG = Random(1)
PROMPTS = tuple(RNG.randint(20, 1500) for _ in range(60))
WORKLOAD = Workload(PROMPTS, tuple(RNG.randint(1, 256) for _ in PROMPTS), 4000, 2048, shard_requests=200)
ASKED = JobAsked(named_model("llama-3.1-8b"), WORKLOAD, most_chips=8)


def chip_seconds(plan: JobPlan) -> float:
    return plan.chip_seconds


@pytest.fixture(scope="module")
def plans() -> list[JobPlan]:
    return job_plans(replace(ASKED, prefill_tokens=8192), named_slices("v5e:2x2,v5e:2x4", 8))


def test_every_plan_is_possible(plans: list[JobPlan]) -> None:
    assert {str(plan.on) for plan in plans} == {"v5e:2x2", "v5e:2x4"}  # 16 GB of weights
    for plan in plans:
        check_divides(ASKED.config, plan.layouts)
        assert plan.layouts.mesh.chips == plan.on.chips
        assert plan.chips <= 8
        assert plan.peak_bytes <= plan.on.limit_bytes
        assert plan.slots <= WORKLOAD.open_sequences
        assert plan.seconds > ASKED.startup_seconds
        assert plan.chip_seconds == plan.chips * plan.seconds
        assert 0 < plan.mfu < 1
        assert 0 <= plan.padding_fraction < 1
    assert {plan.workers for plan in plans if str(plan.on) == "v5e:2x2"} == {1, 2}


def test_the_time_of_a_plan_is_the_sum_of_its_programs(plans: list[JobPlan]) -> None:
    """Once more by hand, from the counts of the batcher and the cost of each program."""
    plan = next(plan for plan in plans if plan.workers == 2)
    flow = play(WORKLOAD, plan.slots, 2000, plan.parts.of_slots)
    chip, layouts = plan.on.chip, plan.layouts
    decode = Program(ASKED.config, chip, layouts, "decode", slot_rows(plan.slots, layouts.mesh.chips), 2048)
    seconds = 300 + flow.decode_steps * cost(decode, wraps=plan.wraps).seconds
    for bucket, times in flow.prefills(plan.prefill_tokens, plan.parts).items():
        rows = bucket_rows(bucket, plan.prefill_tokens, plan.parts)
        seconds += times * cost(Program(ASKED.config, chip, layouts, "prefill", rows, bucket), wraps=plan.wraps).seconds
    assert plan.seconds == pytest.approx(seconds)


def test_more_workers_are_faster_and_no_cheaper(plans: list[JobPlan]) -> None:
    one, two = (
        min((p for p in plans if p.workers == count and str(p.on) == "v5e:2x2"), key=chip_seconds) for count in (1, 2)
    )
    assert one.seconds > two.seconds > one.seconds / 2
    assert two.chip_seconds > one.chip_seconds


def test_goals(plans: list[JobPlan]) -> None:
    front = frontier(plans, seconds=lambda plan: plan.seconds, cost=chip_seconds)
    assert choose(plans, "cheapest", chip_seconds) == front[-1]
    assert choose(plans, "fastest", chip_seconds) == front[0]
    last = math.inf
    for budget in sorted(plan.chips * plan.seconds_range[1] for plan in front):
        chosen = choose(plans, "fastest", chip_seconds, budget=budget)
        assert chosen.chip_seconds * chosen.seconds_range[1] / chosen.seconds <= budget
        assert chosen.seconds <= last  # a larger budget is never slower
        last = chosen.seconds
    dearest = math.inf
    for deadline in sorted(plan.seconds_range[1] for plan in front):
        chosen = choose(plans, "deadline", chip_seconds, deadline_seconds=deadline)
        assert chosen.seconds_range[1] <= deadline
        assert chosen.chip_seconds <= dearest  # more time is never dearer
        dearest = chosen.chip_seconds
    with pytest.raises(NoFeasiblePlan, match="no plan costs 1 or less, its error included; the cheapest"):
        choose(plans, "fastest", chip_seconds, budget=1.0)
    with pytest.raises(NoFeasiblePlan, match="no plan is done within 60 s, its error included; the fastest"):
        choose(plans, "deadline", chip_seconds, deadline_seconds=60.0)


def test_a_start_that_is_assumed_widens_the_interval_and_deadlines_hold_with_it(plans: list[JobPlan]) -> None:
    plan = min(plans, key=lambda plan: plan.seconds)
    work = plan.prefill_seconds + plan.decode_seconds
    low, high = plan.seconds_range
    assert high - plan.seconds == pytest.approx(math.hypot(150, work * plan.error_fraction))
    assert low == pytest.approx(max(0.0, 2 * plan.seconds - high))
    said = replace(plan, asked=replace(plan.asked, startup_error_fraction=0.0))
    assert said.seconds_range[1] == pytest.approx(300 + work * (1 + plan.error_fraction))
    between = (said.seconds_range[1] + high) / 2
    assert choose([said], "deadline", chip_seconds, deadline_seconds=between) == said
    assert choose([said], "fastest", chip_seconds, budget=said.chips * between) == said
    for goal in ({"deadline_seconds": between}, {"budget": plan.chips * between}):
        with pytest.raises(NoFeasiblePlan, match="its error included"):
            choose([plan], "deadline" if "deadline_seconds" in goal else "fastest", chip_seconds, **goal)


def test_what_is_pinned_stays() -> None:
    pinned = replace(
        ASKED,
        mesh=MeshShape(2, 2, 1),
        prefill=Pinned(ffn="ws2d"),
        decode=Pinned(attention="batch"),
        slots=40,
        prefill_tokens=4096,
        weights="int8",
        kv="int8",
    )
    for plan in job_plans(pinned, [Slice.parse("v5e:2x2")]):
        assert (str(plan.layouts.mesh), plan.layouts.prefill.ffn) == ("2x2x1", "ws2d")
        assert (plan.layouts.decode.attention, plan.slots, plan.prefill_tokens) == ("batch", 40, 4096)
        program = plan.decode.program
        assert (program.rows, program.weights, program.kv) == (40, "int8", "int8")


def test_a_job_that_scores_has_no_decode() -> None:
    asked = replace(ASKED, workload=replace(WORKLOAD, completions=(0,) * len(PROMPTS)))
    for plan in job_plans(asked, [Slice.parse("v5e:2x2")]):
        assert (plan.flow, plan.decode_seconds, plan.slots) == (None, 0.0, 8)
        assert plan.prefill(plan.main_bucket).program.phase == "score"
        # Each worker's tokens go through, and little more than padding to the next bucket.
        padded = sum(times * plan.prefill(bucket).tokens for bucket, times in plan.prefills.items())
        assert 1 <= padded / (WORKLOAD.prompt_tokens / plan.workers) < 2


def test_no_plan_says_what_binds_and_what_would_help() -> None:
    with pytest.raises(JobDoesNotFit) as refused:
        job_plans(ASKED, [Slice.parse("v5e:1x1")])
    said = str(refused.value)
    assert "What binds is weights" in said
    assert "v5e:2x2 (4 chips)" in said
    assert "int8 weights" in said
    assert job_plans(replace(ASKED, weights="int8"), [Slice.parse("v5e:1x1")])
    assert refused.value.nearest.peak_bytes > refused.value.nearest.on.limit_bytes
    with pytest.raises(NoFeasiblePlan, match="no slice has 4 chips or fewer"):
        job_plans(replace(ASKED, most_chips=4), [Slice.parse("v5e:2x4")])
