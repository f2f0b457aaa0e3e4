"""`penstock plan JOB.yaml`: what to run a job on, from a look at its data."""

from __future__ import annotations

import argparse
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from engine.compilation.model_named import read_model
from engine.planning.frontier import frontier
from engine.planning.job_planner import JobAsked, JobDoesNotFit, JobPlan, choose, job_plans
from engine.planning.planner import PhasePlan, Pinned
from engine.planning.program import Dtype
from engine.planning.slices import Slice, named_slices
from jobs.planning.job_sample import JobSample, sample
from jobs.planning.phase_plan import ALL_CHIPS
from jobs.planning.plot import Drawing, Point, roofline
from jobs.planning.prices import Prices
from jobs.spec import Job
from pipeline.errors import JobError
from pipeline.storage import open_input

_WORTH_SHOWING = 0.02
_UNITS = {"s": 1, "min": 60, "h": 3600, "d": 86400}


@dataclass(frozen=True)
class JobQuestion:
    """What the command line asks of a job."""

    job: Job
    sample: JobSample
    asked: JobAsked
    slices: Sequence[Slice]
    goal: str
    budget: float | None
    deadline_seconds: float | None
    prices: Prices | None

    @classmethod
    def of(cls, job: Job, options: argparse.Namespace, prices: Prices | None) -> JobQuestion:
        goal, budget, deadline = _goal(options, prices)
        slices = named_slices(options.chips or ALL_CHIPS, options.max_chips)
        engine = job.engine
        mesh = Pinned.named(engine.mesh, None, None).mesh if "mesh" in engine.model_fields_set else None
        if mesh:
            if mesh.slices > 1:  # a pipeline, over as many of each slice that is no pipeline itself
                slices = [on if on.count > 1 else replace(on, count=mesh.slices) for on in slices]
                slices = [on for on in slices if on.count == mesh.slices]
            devices = [on for on in slices if mesh.chips == on.chips * on.chip.devices]
            if not devices:
                raise JobError(
                    f"engine.mesh: {engine.mesh} is {mesh.chips} chips, and no slice in question has as many"
                )
            slices = devices
        if prices and (missing := {on.chip.name for on in slices} - prices.chip_hour.keys()):
            names = ", ".join(sorted(missing))
            raise JobError(f"{prices.source} has no price of {names}; add it, or restrict --chips")
        looked = sample(job, options.rows, options.output_tokens)
        held = _dtype(job, looked)
        asked = JobAsked(
            read_model(job.model.checkpoint, open_input),
            looked.workload,
            "int8" if job.model.weights == "int8" else held,
            "int8" if job.model.kv == "int8" else held,
            mesh,
            Pinned.named(None, *engine.prefill.names()),
            Pinned.named(None, *engine.decode.names()),
            None if engine.slots == "auto" else engine.slots,
            None if engine.prefill_tokens == "auto" else engine.prefill_tokens,
            options.max_chips,
            options.startup,
        )
        return cls(job, looked, asked, slices, goal, budget, deadline, prices)

    def price(self, plan: JobPlan) -> float | None:
        """Of the whole job."""
        return self.prices and self.prices.money(plan.on.chip.name, plan.chip_seconds)

    def cost_of(self, plan: JobPlan) -> float:
        """What is compared: money, or else chip-seconds."""
        price = self.price(plan)
        return plan.chip_seconds if price is None else price


@dataclass(frozen=True)
class JobAnswer:
    """The plan that was chosen, and what from. `problem`: why even the nearest plan is none."""

    question: JobQuestion
    chosen: JobPlan
    plans: Sequence[JobPlan]
    problem: str | None = None

    @classmethod
    def to(cls, question: JobQuestion) -> JobAnswer:
        try:
            plans = job_plans(question.asked, question.slices)
        except JobDoesNotFit as refused:
            return cls(question, refused.nearest, [], str(refused))
        chosen = choose(
            plans,
            question.goal,
            question.cost_of,
            budget=question.budget,
            deadline_seconds=question.deadline_seconds,
        )
        return cls(question, chosen, plans)

    @cached_property
    def frontier(self) -> list[JobPlan]:
        return frontier(self.plans, seconds=lambda plan: plan.seconds, cost=self.question.cost_of)

    def shown_frontier(self) -> list[JobPlan]:
        """Without those that are hardly faster than a cheaper one."""
        shown: list[JobPlan] = []
        for plan in reversed(self.frontier):
            if not shown or plan.seconds < shown[-1].seconds * (1 - _WORTH_SHOWING):
                shown.append(plan)
        return shown[::-1]

    def runners_up(self, count: int = 5) -> list[JobPlan]:
        """The best of every other slice by what is asked for, and of other layouts on the same one."""
        fastest_first = self.question.goal == "fastest"
        key = (lambda plan: plan.seconds) if fastest_first else self.question.cost_of
        best: dict[Any, JobPlan] = {}
        for plan in sorted(self.plans, key=key):
            same = plan.on == self.chosen.on
            best.setdefault((plan.on, plan.layouts if same else None), plan)
        best.pop((self.chosen.on, self.chosen.layouts), None)
        return list(best.values())[:count]

    @property
    def engine_section(self) -> dict[str, Any]:
        """What to write into the job, so that it runs like this."""
        plan = self.chosen
        section: dict[str, Any] = {"mesh": str(plan.layouts.mesh)}
        for name, layout in (("prefill", plan.layouts.prefill), ("decode", plan.layouts.decode)):
            section[name] = {"ffn": layout.ffn, "attention": layout.attention}
        section |= {
            "slots": plan.slots,
            "max_length": plan.asked.workload.max_length,
            "prefill_tokens": plan.prefill_tokens,
        }
        return section

    def notes(self) -> Iterator[str]:
        question, plan, looked = self.question, self.chosen, self.question.sample
        if looked.failed:
            yield f"{looked.failed:,} of {looked.looked_at:,} rows looked at would fail; penstock validate says why"
        if not looked.is_whole:
            yield (
                f"{looked.looked_at:,} of {looked.rows:,} rows were looked at, the longest prompt has "
                f"{looked.longest_prompt:,} tokens; longer than {plan.asked.workload.max_length:,} tokens with their "
                "completion (engine.max_length) none can be"
            )
        if question.job.task == "generate":
            yield f"length of completions: {looked.completions_from}"
        if question.prices is None:
            kinds = len({on.chip.name for on in question.slices})
            across = "; chips of different kinds are compared by chip-hours" if kinds > 1 else ""
            yield f"no prices were given (--prices FILE), so costs are chip-hours{across}"
        hosts = plan.on.chips / math.prod(plan.on.chip.host or (plan.on.chips,))
        if hosts > 1:
            yield f"{plan.on} is {math.ceil(hosts)} hosts, which engine.hosts names: see docs/multi-host.md"
        if plan.workers > 1:
            yield f"{plan.workers} workers are as many slices, each with a copy of the model and a share of the shards"
        yield f"{plan.asked.startup_seconds:g} s to load and compile are assumed for every worker (--startup)"
        yield f"times are predicted, not measured; the error is {plan.error_fraction:.0%} (one standard deviation)"

    @property
    def programs(self) -> list[PhasePlan]:
        """That the chosen plan spends its time in."""
        plan = self.chosen
        return [plan.prefill(plan.main_bucket), *([plan.decode] if plan.flow else [])]

    @property
    def title(self) -> str:
        return f"Plans of {self.question.job.name}"

    def drawings(self) -> list[Drawing]:
        """Cost against finishing time of all plans, with the frontier, and the roofline of the chosen one."""
        prices, cost_of = self.question.prices, self.question.cost_of
        scale, unit = (1.0, prices.currency) if prices else (1 / 3600, "chip-hours")
        points = [
            Point(
                plan.seconds / 60,
                cost_of(plan) * scale,
                plan.on.chip.name,
                f"{plan.workers} x {plan.on}, {plan.layouts.mesh}, {plan.slots} slots",
                plan is self.chosen,
            )
            for plan in self.plans
        ]
        line = ("frontier", [(plan.seconds / 60, cost_of(plan) * scale) for plan in self.frontier])
        return [
            Drawing("Cost against finishing time", "minutes", unit, points, [line]),
            roofline([(plan.asked.phase, plan) for plan in self.programs]),
        ]

    def to_json(self) -> dict[str, Any]:
        question, looked = self.question, self.question.sample
        workload, prices = looked.workload, self.question.prices
        return {
            "job": question.job.name,
            "task": question.job.task,
            "model": question.job.model.checkpoint,
            "rows": looked.rows,
            "rows_looked_at": looked.looked_at,
            "prompt_tokens": workload.prompt_tokens,
            "completion_tokens": workload.completion_tokens,
            "goal": question.goal,
            "plan": self._facts(self.chosen) | {"engine": self.engine_section},
            "problem": self.problem,
            "runners_up": [self._facts(plan) for plan in self.runners_up()],
            "frontier": [self._facts(plan) for plan in self.frontier],
            "prices": prices and {"date": prices.date, "currency": prices.currency, "file": prices.source},
            "notes": list(self.notes()),
        }

    def _facts(self, plan: JobPlan) -> dict[str, Any]:
        low, high = plan.seconds_range
        price = self.question.price(plan)
        prefill = plan.prefill(plan.main_bucket)
        return {
            "chips": str(plan.on),
            "workers": plan.workers,
            "mesh": str(plan.layouts.mesh),
            "prefill": {"ffn": plan.layouts.prefill.ffn, "attention": plan.layouts.prefill.attention},
            "decode": {"ffn": plan.layouts.decode.ffn, "attention": plan.layouts.decode.attention},
            "slots": plan.slots,
            "prefill_tokens": plan.prefill_tokens,
            "max_length": plan.asked.workload.max_length,
            "seconds": plan.seconds,
            "seconds_low": low,
            "seconds_high": high,
            "startup_seconds": plan.asked.startup_seconds,
            "prefill_seconds": plan.prefill_seconds,
            "decode_seconds": plan.decode_seconds,
            "chip_hours": plan.chip_seconds / 3600,
            "price": price,
            "price_low": price and price * low / plan.seconds,
            "price_high": price and price * high / plan.seconds,
            "mfu": plan.mfu,
            "slots_busy_fraction": plan.flow.busy_fraction if plan.flow else None,
            "decode_steps": plan.flow.decode_steps if plan.flow else 0,
            "prefills": {str(bucket): times for bucket, times in sorted(plan.prefills.items())},
            "padding_fraction": plan.padding_fraction,
            "weight_bytes": plan.weight_bytes,
            "kv_bytes": plan.cache_bytes,
            "activation_bytes": plan.activation_bytes,
            "peak_bytes": plan.peak_bytes,
            "limit_bytes": plan.on.limit_bytes,
            "fits": plan.fits,
            "bound_by": {"prefill": dict(prefill.cost.bound_by)}
            | ({"decode": dict(plan.decode.cost.bound_by)} if plan.flow else {}),
        }


def _goal(options: argparse.Namespace, prices: Prices | None) -> tuple[str, float | None, float | None]:
    """The goal, or what a budget or a deadline alone means; refused where they do not go together."""
    budget = None if options.budget is None else _money(options.budget)
    deadline = None if options.deadline is None else _seconds(options.deadline)
    implied = "fastest" if budget is not None else "deadline" if deadline is not None else "cheapest"
    goal = options.goal or implied
    if budget is not None and goal != "fastest":
        raise JobError(f"--budget goes with --goal fastest, not {goal}")
    if deadline is not None and goal != "deadline":
        raise JobError(f"--deadline goes with --goal deadline, not {goal}")
    if goal == "deadline" and deadline is None:
        raise JobError("--goal deadline needs --deadline, such as 90min, 6h or 2d")
    if budget is not None and prices is None:
        raise JobError("--budget needs to know what chips cost: --prices FILE")
    return goal, budget, deadline


def _money(text: str) -> float:
    try:
        money = float(text)
    except ValueError:
        money = math.nan
    if not money > 0 or math.isinf(money):
        raise JobError(f"--budget {text}: write a positive number, in the currency of the prices")
    return money


def _seconds(text: str) -> float:
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(s|min|h|d)", text)
    if found is None or float(found[1]) <= 0:
        raise JobError(f"--deadline {text}: write a time such as 90min, 6h or 2d")
    return float(found[1]) * _UNITS[found[2]]


def _dtype(job: Job, looked: JobSample) -> Dtype:
    """What an accelerator would hold the weights in."""
    if job.model.dtype != "auto":
        return job.model.dtype
    return "bfloat16" if looked.parts.model.dtype == "bfloat16" else "float32"
