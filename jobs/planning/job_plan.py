"""`penstock plan JOB.yaml`: what to run a job on, from a look at its data."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from engine.planning.frontier import frontier
from engine.planning.job_cost import JobAsked, JobDoesNotFit, JobPlan
from engine.planning.job_planner import job_plans
from engine.planning.planner import PhasePlan
from engine.planning.slices import Slice
from jobs.planning.job_question import JobQuestion
from jobs.planning.places import CPU, place_words
from jobs.planning.plot import Drawing, Point, roofline
from jobs.wording import count_words, duration

PROCESSOR_SLOTS = (64, 16, 32, 128, 256)
PROCESSOR_PREFILL_TOKENS = (256, 512, 1024)
"""That are tried where the engine runs on a processor; the first is what it takes if nobody says (options.py)."""
_NEAR = 0.05
"""What differs by less is not worth leaving what the engine takes by itself."""

_WORTH_SHOWING = 0.02


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
            plans = _plans(question)
        except JobDoesNotFit as refused:
            return cls(question, refused.nearest, [], str(refused))
        return cls(question, _usual(question.choose(plans), plans), plans)

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
        fastest_first = self.question.goal.name == "fastest"
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
        yield f"{duration(plan.asked.startup_seconds)} to load and compile for every worker: {question.startup_from}"
        corrected = question.corrections.get(plan.on.chip.name)
        if corrected and corrected.runs:
            runs = count_words(corrected.runs, "earlier run")
            yield f"times are corrected by {corrected.factor:.2f} from {runs} of this model on {plan.on.chip.name}"
        if question.history_note:
            yield question.history_note
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
                f"{place_words(plan.on, plan.workers)}, {plan.layouts.mesh}, {plan.slots} slots",
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
            "goal": question.goal.name,
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


def _plans(question: JobQuestion) -> list[JobPlan]:
    processors = [on for on in question.slices if on.chip.name == CPU]
    others = [on for on in question.slices if on.chip.name != CPU]
    found = job_plans(question.asked, others) if others else []
    return found + [plan for on in processors for plan in _processor_plans(question.asked, on)]


def _processor_plans(asked: JobAsked, on: Slice) -> list[JobPlan]:
    """A plan for every number of slots, since more is not always faster there; the best again with other prefills."""

    def plans(slots: int, tokens: int) -> list[JobPlan]:
        return job_plans(replace(asked, slots=slots, prefill_tokens=tokens, most_chips=1), [on])

    first, *other_tokens = (asked.prefill_tokens,) if asked.prefill_tokens else PROCESSOR_PREFILL_TOKENS
    found = [plan for slots in ((asked.slots,) if asked.slots else PROCESSOR_SLOTS) for plan in plans(slots, first)]
    best = min(found, key=lambda plan: plan.seconds).asked.slots
    return found + [plan for tokens in other_tokens for plan in plans(best or PROCESSOR_SLOTS[0], tokens)]


def _usual(chosen: JobPlan, plans: Sequence[JobPlan]) -> JobPlan:
    """What the engine takes by itself on a processor, where that is hardly slower."""
    usual = (PROCESSOR_SLOTS[0], PROCESSOR_PREFILL_TOKENS[0])
    near = (
        plan
        for plan in plans
        if chosen.on.chip.name == CPU == plan.on.chip.name and (plan.asked.slots, plan.asked.prefill_tokens) == usual
    )
    return next((plan for plan in near if plan.seconds <= chosen.seconds * (1 + _NEAR)), chosen)
