"""`penstock plan --model`: the best layout of one phase of a model on given chips, or the best chips for it.

Times are predicted (engine/planning/cost.py); its stated error is in every answer.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from engine.compilation.model_named import read_model
from engine.planning.frontier import frontier
from engine.planning.planner import Asked, DoesNotFit, Found, PhasePlan, Pinned, search, sweep
from engine.planning.program import DTYPE_NAMES, DTYPES, PLANNED_DTYPES
from engine.planning.slices import Slice
from engine.planning.speculation import Speculation
from jobs.planning.places import named_places
from jobs.planning.plot import Drawing, Point, roofline
from jobs.planning.prices import Prices
from pipeline.errors import JobError
from pipeline.storage import open_input

ALL_CHIPS = "v4,v5e,v5p,v6e"
BATCHES = tuple(2**power for power in range(11))
DECODED_TOKENS = 64
DRAFT_TOKENS = 4


@dataclass(frozen=True)
class PhaseQuestion:
    """What the command line asks."""

    model: str
    asked: Asked
    slices: Sequence[Slice]
    is_sweep: bool
    """No batch was given."""
    tokens: int
    """Decoded for each sequence."""
    goal: str
    prices: Prices | None
    notes: tuple[str, ...] = ()

    @classmethod
    def of(cls, options: argparse.Namespace, prices: Prices | None) -> PhaseQuestion:
        if options.phase is None or options.context is None:
            raise JobError("--model needs --phase prefill, decode or score, and --context; see penstock plan --help")
        for flag in ("budget", "deadline"):
            if getattr(options, flag) is not None:
                raise JobError(f"--{flag} is for a whole job: penstock plan JOB.yaml")
        config = read_model(options.model, open_input)
        pinned = Pinned.named(options.mesh, options.ffn, options.attention)
        slices = named_places(options.chips or ALL_CHIPS, options.max_chips, DTYPES.get(options.weights, "bfloat16"))
        if options.mesh and len(slices) > 1:
            raise JobError(f"--mesh {options.mesh} needs one slice: --chips such as v4:4x4x4")
        if pinned.mesh and pinned.mesh.slices > 1 and pinned.mesh.slices != slices[0].count:
            raise JobError(
                f"--mesh {options.mesh} is a pipeline over {pinned.mesh.slices} slices: "
                f"--chips such as {pinned.mesh.slices}*v4:4x4x4"
            )
        notes = []
        if options.context > config.context_tokens:
            notes.append(f"the model was trained for {config.context_tokens} tokens")
        if options.phase != "decode" and options.tokens is not None:
            notes.append(f"--tokens says how many are decoded; a {options.phase} program decodes none")
        asked = Asked(
            config,
            options.phase,
            options.batch or 1,
            options.context,
            weights=PLANNED_DTYPES[options.weights or "bf16"],
            kv=DTYPES[options.kv or "bf16"],
            pinned=pinned,
            shared_tokens=options.shared_prefix or 0,
            speculation=_speculation(options),
        )
        tokens = options.tokens or DECODED_TOKENS
        if asked.phase == "decode" and tokens > options.context:
            raise JobError(f"--tokens {tokens}: the cache holds {options.context} tokens of each sequence (--context)")
        goal = options.goal or "cheapest"
        if goal == "deadline":
            raise JobError("--goal deadline is for a whole job: penstock plan JOB.yaml")
        return cls(options.model, asked, slices, options.batch is None, tokens, goal, prices, tuple(notes))

    def whole_seconds(self, plan: PhasePlan) -> float:
        """Of all tokens of each sequence."""
        return plan.seconds_per_token * (self.tokens if self.asked.phase == "decode" else self.asked.context_tokens)

    @property
    def planned_only(self) -> list[str]:
        """What is asked about and the engine cannot do."""
        asked, found = self.asked, []
        if asked.weights not in DTYPES.values():
            found.append(f"weights in {DTYPE_NAMES[asked.weights]}: the engine runs float32, bfloat16 and int8")
        if asked.shared_tokens:
            found.append("a shared prefix: the engine computes and keeps it for every request")
        if asked.speculation:
            found.append("a draft model: the engine does not speculate")
        return found

    def found(self) -> Found:
        return sweep(self.asked, self.slices, BATCHES) if self.is_sweep else search(self.asked, self.slices)

    def price(self, plan: PhasePlan) -> float | None:
        """Of a token; None where the table does not have the chip."""
        return self.prices and self.prices.money(plan.on.chip.name, plan.chip_seconds_per_token)

    def cost_of(self, plan: PhasePlan) -> float:
        """What is compared: money for a token, or else chip-seconds."""
        price = self.price(plan)
        return plan.chip_seconds_per_token if price is None else price

    def choose(self, plans: Sequence[PhasePlan]) -> PhasePlan:
        def cost(plan: PhasePlan) -> float:
            return self.cost_of(plan) * plan.rank / plan.seconds

        if self.goal == "fastest":
            return min(plans, key=lambda plan: (plan.rank, cost(plan)))
        return min(plans, key=lambda plan: (cost(plan), plan.rank))


@dataclass(frozen=True)
class PhaseAnswer:
    """The plan that was chosen, and what it was chosen from."""

    question: PhaseQuestion
    chosen: PhasePlan
    found: Found
    problem: str | None = None
    """Why even the nearest plan is none."""

    @classmethod
    def to(cls, question: PhaseQuestion) -> PhaseAnswer:
        if question.prices:
            missing = {on.chip.name for on in question.slices} - question.prices.chip_hour.keys()
            if missing:
                names = ", ".join(sorted(missing))
                raise JobError(f"{question.prices.source} has no price of {names}; add it, or restrict --chips")
        try:
            found = question.found()
        except DoesNotFit as refused:
            return cls(question, refused.nearest, Found([], [refused.nearest]), str(refused))
        return cls(question, question.choose(found.plans), found)

    def frontier(self) -> list[PhasePlan]:
        """The fastest first, each slower one cheaper."""
        cost = self.question.cost_of
        return frontier(self.found.plans, seconds=lambda plan: plan.seconds, cost=cost)

    def runners_up(self, count: int = 5) -> list[PhasePlan]:
        """The best of every other choice of layout on the same slice and for the same batch, then of other slices."""
        same = [plan for plan in self.found.plans if plan.on == self.chosen.on and plan.asked == self.chosen.asked]
        best: dict[Any, PhasePlan] = {}
        for plan in same:
            best.setdefault((plan.layout.ffn, plan.layout.attention), plan)
        best.pop((self.chosen.layout.ffn, self.chosen.layout.attention), None)
        return list(best.values())[:count]

    def too_large(self) -> list[PhasePlan]:
        """Layouts that would be faster on the same slice, and do not fit."""
        faster: dict[Any, PhasePlan] = {}
        for plan in self.found.too_large:
            is_same = plan.on == self.chosen.on and plan.asked == self.chosen.asked
            if is_same and plan.seconds < self.chosen.seconds:
                faster.setdefault((plan.layout.ffn, plan.layout.attention), plan)
        return list(faster.values())

    def notes(self) -> Iterator[str]:
        question = self.question
        yield from question.notes
        for what in question.planned_only:
            yield f"planned only: {what}"
        names = {on.chip.name for on in question.slices}
        if len(names) > 1 and not question.prices and question.goal == "cheapest":
            yield "without prices (--prices FILE) chips of different kinds are compared by chip-seconds"
        if self.chosen.program.rows != self.chosen.asked.batch:
            yield (
                f"the program has {self.chosen.program.rows} rows for {self.chosen.asked.batch} sequences: it divides "
                "over the chips"
            )
        yield (
            f"times are predicted, not measured; the model's error is {self.chosen.cost.error_fraction:.0%} (one "
            "standard deviation)"
        )

    @property
    def programs(self) -> list[PhasePlan]:
        return [self.chosen]

    @property
    def title(self) -> str:
        return f"{self.chosen.asked.phase} of {self.question.model}"

    def drawings(self) -> list[Drawing]:
        """Cost against time, each slice and batch in its best layout, with the frontier, and the roofline of that."""
        question, front = self.question, self.frontier()
        best = {(plan.on, plan.asked.batch): plan for plan in reversed(self.found.plans)}  # sorted: the fastest is last
        best[self.chosen.on, self.chosen.asked.batch] = self.chosen
        scale, unit = (1e6, f"{question.prices.currency} a million tokens") if question.prices else (1e3, "")
        points = [
            Point(
                plan.seconds,
                question.cost_of(plan) * scale,
                plan.on.chip.name,
                f"{plan.on}, {plan.layout.mesh}, {plan.layout.ffn}, {plan.layout.attention}, batch {plan.asked.batch}",
                plan is self.chosen,
            )
            for plan in best.values()
        ]
        line = ("frontier", [(plan.seconds, question.cost_of(plan) * scale) for plan in front])
        time = "seconds of a step" if self.chosen.asked.phase == "decode" else "seconds"
        return [
            Drawing("Cost against time", time, unit or "chip-milliseconds a token", points, [line]),
            roofline([(f"batch {plan.asked.batch} on {plan.on}", plan) for plan in front[-6:]]),
        ]

    def to_json(self) -> dict[str, Any]:
        question, plan = self.question, self.chosen
        asked = plan.asked
        seconds = question.whole_seconds(plan)
        low, high = (seconds * (1 + sign * plan.cost.error_fraction) for sign in (-1, 1))
        return {
            "model": question.model,
            "phase": asked.phase,
            "batch": asked.batch,
            "context": asked.context_tokens,
            "tokens": question.tokens if asked.phase == "decode" else None,
            "weights": DTYPE_NAMES[plan.program.weights],
            "kv": DTYPE_NAMES[plan.program.kv],
            "shared_prefix": asked.shared_tokens,
            "speculation": _speculation_facts(plan),
            "planned_only": question.planned_only,
            **_facts(question, plan),
            "seconds": seconds,
            "seconds_low": low,
            "seconds_high": high,
            "error_fraction": plan.cost.error_fraction,
            "counted": "one decode step" if asked.phase == "decode" else f"one {asked.phase}",
            "rows": plan.program.rows,
            "flops": plan.cost.flops,
            "read_weight_bytes": plan.cost.weight_bytes,
            "read_kv_bytes": plan.cost.kv_bytes,
            "collective_bytes": plan.cost.collective_bytes,
            "collective_bytes_by_axis": dict(plan.cost.collective_bytes_by_axis),
            "parts": dict(plan.cost.parts),
            "problem": self.problem,
            "runners_up": [_facts(question, other) for other in self.runners_up()],
            "frontier": [
                {"batch": other.asked.batch, **_facts(question, other)} for other in self.frontier() if not self.problem
            ],
            "prices": question.prices
            and {"date": question.prices.date, "currency": question.prices.currency, "file": question.prices.source},
            "notes": list(self.notes()),
        }


def _facts(question: PhaseQuestion, plan: PhasePlan) -> dict[str, Any]:
    """Of any plan; bytes are of one device."""
    held, price = plan.memory, question.price(plan)
    is_decode = plan.asked.phase == "decode"
    return {
        "chips": str(plan.on),
        "mesh": str(plan.layout.mesh),
        "ffn": plan.layout.ffn,
        "attention": plan.layout.attention,
        "seconds_per_token": plan.seconds_per_token,
        "tokens_per_second": plan.tokens / plan.seconds,
        "mfu": plan.mfu,
        "chip_seconds_per_token": plan.chip_seconds_per_token,
        "price_per_million_tokens": None if price is None else price * 1e6,
        "weight_bytes": held.weights,
        "kv_bytes": held.cache if is_decode else held.results,
        "activation_bytes": held.peak - held.weights - (held.cache if is_decode else held.results),
        "draft_bytes": plan.peak_bytes - held.peak,
        "peak_bytes": plan.peak_bytes,
        "limit_bytes": plan.on.limit_bytes,
        "fits": plan.fits,
        "bound_by": dict(plan.bound_by),
    }


def _speculation(options: argparse.Namespace) -> Speculation | None:
    if options.draft is None:
        if options.draft_tokens is not None or options.acceptance is not None:
            raise JobError("--draft-tokens and --acceptance are of a draft model: --draft NAME")
        return None
    if options.acceptance is None:
        raise JobError("--draft needs --acceptance: the share of its guesses that are accepted, such as 0.7")
    return Speculation(read_model(options.draft, open_input), options.draft_tokens or DRAFT_TOKENS, options.acceptance)


def _speculation_facts(plan: PhasePlan) -> dict[str, Any] | None:
    speculation = plan.asked.speculation
    if speculation is None or plan.draft is None:
        return None
    return {
        "draft_tokens": speculation.guesses,
        "acceptance": speculation.acceptance,
        "expected_tokens": speculation.tokens,
        "draft_step_seconds": plan.draft.cost.seconds,
        "draft_ffn": plan.draft.layout.ffn,
        "verify_seconds": plan.cost.seconds,
    }
