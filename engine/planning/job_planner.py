"""The search for a whole job: chips, mesh, the layout of each phase, slots, how many tokens a prefill takes, workers.

A worker is one slice with a copy of the model, and does its share of the shards. Its time is

    startup + sum over buckets of prefills x time of one + decode steps x time of one

with the counts of engine/planning/batching.py and the times of engine/planning/cost.py. Phases share a mesh and the
weights at rest. Both programs must fit beside the cache: a prefill's temporaries and results come on top of it.

First each phase by itself is ranked on every mesh, for the most common bucket; then the few best pairs that fit
together are counted in full, and those for several workers.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache

from engine.errors import NoFeasiblePlan
from engine.layout import Layouts, indivisible
from engine.mesh import MeshShape
from engine.model.config import ModelConfig
from engine.planning.batching import Flow, Workload, buckets_of, play, scored
from engine.planning.buckets import MIN_ROWS, Parts, bucket_rows, slot_rows
from engine.planning.memory import Memory
from engine.planning.planner import (
    MOST_CHIPS,
    Asked,
    PhasePlan,
    Pinned,
    candidates,
    layouts_of,
    meshes_to_try,
    shortfall,
    slice_names,
)
from engine.planning.program import Dtype, Phase, Program
from engine.planning.slices import Slice, Wraps, slices_of

STARTUP_SECONDS = 300.0
"""Of a worker: reading the weights and compiling. An assumption; it is shown."""

PREFILL_TOKENS = (8192, 65_536, 524_288)
_SLOTS = tuple(2**power for power in range(3, 13))
_SLOT_CHOICES = 3
_PREFILL_CHOICES = 2
_COUNTED_IN_FULL = 3


@dataclass(frozen=True)
class JobAsked:
    """A job, and what of its plan is not to be chosen."""

    config: ModelConfig
    workload: Workload
    weights: Dtype = "bfloat16"
    kv: Dtype = "bfloat16"
    mesh: MeshShape | None = None
    prefill: Pinned = Pinned()
    decode: Pinned = Pinned()
    slots: int | None = None
    prefill_tokens: int | None = None
    most_chips: int = 256
    """Of all workers together."""
    startup_seconds: float = STARTUP_SECONDS

    @property
    def prompt_phase(self) -> Phase:
        return "score" if self.workload.is_scoring else "prefill"


@dataclass(frozen=True)
class JobPlan:
    """A job on so many slices of a kind, in certain layouts, with what it takes."""

    asked: JobAsked
    on: Slice
    workers: int
    layouts: Layouts
    wraps: Wraps
    slots: int
    prefill_tokens: int
    """That a prefill program holds, about."""

    @property
    def chips(self) -> int:
        return self.on.chips * self.workers

    @cached_property
    def parts(self) -> Parts:
        return Parts.of(self.layouts)

    # What runs.

    @cached_property
    def requests(self) -> int:
        """Of the worker with the most."""
        return -(-self.asked.workload.requests // self.workers)

    @cached_property
    def flow(self) -> Flow | None:
        """None for a job that scores."""
        workload = self.asked.workload
        return None if workload.is_scoring else play(workload, self.slots, self.requests, self.parts.of_slots)

    @cached_property
    def prefills(self) -> dict[int, float]:
        """How often the program of each bucket runs."""
        if self.flow is None:
            return scored(self.asked.workload, self.requests, self.prefill_tokens, self.parts)
        return self.flow.prefills(self.prefill_tokens, self.parts)

    def rough_prefills(self) -> Iterable[tuple[int, float]]:
        """As `prefills`, as though slots were in one part; that is known for many plans at once."""
        workload = self.asked.workload
        if workload.is_scoring:
            return self.prefills.items()
        return play(workload, self.slots, self.requests).prefills(self.prefill_tokens, self.parts).items()

    def rough_steps(self) -> float:
        workload = self.asked.workload
        return 0.0 if workload.is_scoring else play(workload, self.slots, self.requests).decode_steps

    def prefill(self, bucket: int) -> PhasePlan:
        rows = bucket_rows(bucket, self.prefill_tokens, self.parts)
        return self._phase(self.asked.prompt_phase, rows, bucket)

    @cached_property
    def main_bucket(self) -> int:
        """That most of the time of prefills goes to."""
        return max(self.prefills, key=lambda bucket: self.prefills[bucket] * self.prefill(bucket).seconds)

    @cached_property
    def decode(self) -> PhasePlan:
        rows = slot_rows(self.slots, self.parts.chips, self.parts.stages)
        return self._phase("decode", rows, self.asked.workload.max_length)

    def _phase(self, phase: Phase, rows: int, context_tokens: int) -> PhasePlan:
        asked = Asked(self.asked.config, phase, rows, context_tokens, self.asked.weights, self.asked.kv)
        return _phase_plan(asked, self.on, self.layouts, self.wraps)

    @property
    def padding_fraction(self) -> float:
        """Of the tokens that prefills compute."""
        workload = self.asked.workload
        mean = workload.prompt_tokens / workload.requests - (not workload.is_scoring)
        padded = math.fsum(times * self.prefill(bucket).tokens for bucket, times in self.prefills.items())
        return 1 - self.requests * mean / padded

    # How long it takes.

    @cached_property
    def prefill_seconds(self) -> float:
        return math.fsum(times * self.prefill(bucket).seconds for bucket, times in self.prefills.items())

    @cached_property
    def decode_seconds(self) -> float:
        return self.flow.decode_steps * self.decode.seconds if self.flow else 0.0

    @property
    def seconds(self) -> float:
        """Until all is done."""
        return self.asked.startup_seconds + self.prefill_seconds + self.decode_seconds

    @property
    def error_fraction(self) -> float:
        """Of the time after the start."""
        return max(self.decode.cost.error_fraction, self.prefill(self.main_bucket).cost.error_fraction)

    @property
    def seconds_range(self) -> tuple[float, float]:
        """One standard deviation either way."""
        start = self.asked.startup_seconds
        work, error = self.seconds - start, self.error_fraction
        return start + work * (1 - error), start + work * (1 + error)

    @property
    def chip_seconds(self) -> float:
        return self.chips * self.seconds

    # What it holds, on one device.

    @property
    def weight_bytes(self) -> int:
        return self.decode.memory.weights

    @property
    def cache_bytes(self) -> int:
        return self.decode.memory.cache

    @cached_property
    def activation_bytes(self) -> int:
        """The most that any program needs besides."""
        prefills = (self.prefill(bucket).memory for bucket in self.prefills or buckets_of(self.asked.workload))
        return max(
            self.decode.memory.peak - self.weight_bytes - self.cache_bytes,
            *(memory.peak - memory.weights for memory in prefills),
        )

    @property
    def peak_bytes(self) -> int:
        return self.weight_bytes + self.cache_bytes + self.activation_bytes

    @property
    def fits(self) -> bool:
        return self.peak_bytes <= self.on.limit_bytes

    @property
    def mfu(self) -> float:
        """Over the time after the start: 2 N tokens, of prompts and completions."""
        decode = self.decode.cost
        model_flops = (
            decode.mfu * decode.seconds * self.decode.program.tokens**-1
        )  # of a token, in seconds of all peaks
        tokens = (self.asked.workload.prompt_tokens + self.asked.workload.completion_tokens) / self.workers
        return model_flops * tokens / (self.prefill_seconds + self.decode_seconds)


class JobDoesNotFit(NoFeasiblePlan):
    """No plan fits; `nearest` lacks the least."""

    def __init__(self, message: str, nearest: JobPlan) -> None:
        super().__init__(message)
        self.nearest = nearest


@lru_cache(maxsize=8192)
def _phase_plan(asked: Asked, on: Slice, layouts: Layouts, wraps: Wraps) -> PhasePlan:
    """Kept, with its cost and peak: many plans of a job share it."""
    program = Program(
        asked.config,
        on.chip,
        layouts,
        asked.phase,
        asked.batch,
        asked.context_tokens,
        weights=asked.weights,
        kv=asked.kv,
    )
    return PhasePlan(on, asked, program, wraps)


def job_plans(asked: JobAsked, slices: Sequence[Slice]) -> list[JobPlan]:
    """The best plans of every slice, for every number of workers that there are chips and shards for."""
    slices = [on for on in slices if on.chips <= asked.most_chips]
    if not slices:
        raise NoFeasiblePlan(f"no slice has {asked.most_chips} chips or fewer; allow more")
    found: list[JobPlan] = []
    nearest: list[JobPlan] = []
    for on in slices:
        rough = list(_rough_plans(asked, on))
        best = [one.plan for one in sorted(rough, key=lambda one: one.rank) if one.peak_bytes <= on.limit_bytes]
        fitting = [plan for plan in best[:_COUNTED_IN_FULL] if plan.fits]
        if not fitting and rough:
            least = min(rough, key=lambda one: one.peak_bytes).plan
            (fitting if least.fits else nearest).append(least)
        found += [replace(plan, workers=workers) for plan in fitting for workers in _workers(asked, on)]
    if not found:
        raise _why_none(asked, slices, nearest)
    return found


def _workers(asked: JobAsked, on: Slice) -> Iterator[int]:
    shards = -(-asked.workload.requests // asked.workload.shard_requests)
    workers = 1
    while workers * on.chips <= asked.most_chips and workers <= shards:
        yield workers
        workers *= 2


@dataclass(frozen=True)
class _Rough:
    """A plan for one worker, before its buckets are counted one by one."""

    plan: JobPlan
    rank: float
    """Of every bucket's tokens as of the most common one's."""
    peak_bytes: int


def _rough_plans(asked: JobAsked, on: Slice) -> Iterator[_Rough]:
    """All pairs of good layouts, one for each phase."""
    common = _common_bucket(asked.workload)
    for mesh, wraps in meshes_to_try(asked.config, on, asked.mesh).items():
        prompts = _prefill_choices(asked, on, mesh, common)
        for prompt, decode in itertools.product(prompts, _decode_choices(asked, on, mesh)):
            try:
                layouts = layouts_of(mesh, prompt.layout.names, decode.layout.names)
            except NoFeasiblePlan:  # one phase 1D and the other 2D
                continue
            if indivisible(asked.config, layouts) is None:
                tokens = asked.prefill_tokens or prompt.asked.batch * prompt.asked.context_tokens
                plan = JobPlan(asked, on, 1, layouts, wraps, decode.asked.batch, tokens)
                padded = sum(
                    times * bucket * bucket_rows(bucket, tokens, plan.parts) for bucket, times in plan.rough_prefills()
                )
                held, other = decode.memory, prompt.memory
                yield _Rough(
                    plan,
                    padded * prompt.rank / prompt.tokens + plan.rough_steps() * decode.rank,
                    held.weights + held.cache + max(held.peak - held.weights - held.cache, other.peak - other.weights),
                )


@lru_cache(maxsize=16)
def _common_bucket(workload: Workload) -> int:
    """That most tokens of prompts are padded to."""
    buckets, lengths = buckets_of(workload), Counter[int]()
    for tokens, times in Counter(workload.prompts).items():
        lengths[next((one for one in buckets if one >= tokens), workload.max_length)] += times
    return max(lengths, key=lambda bucket: bucket * lengths[bucket])


def _decode_choices(asked: JobAsked, on: Slice, mesh: MeshShape) -> list[PhasePlan]:
    """The best layout for each of the largest numbers of slots that fit."""
    workload = asked.workload
    if workload.is_scoring:
        sizes = [MIN_ROWS]
    elif asked.slots:
        sizes = [asked.slots]
    else:
        most = workload.open_sequences
        sizes = sorted({min(size, most) for size in _SLOTS if size < 2 * most}, reverse=True)
    pinned = replace(asked.decode, mesh=mesh)
    if pinned.ffn is None:
        pinned = replace(pinned, ffn="ws2d" if mesh.x > 1 else "ws1d" if mesh.chips > 1 else "ws2d")
    found: list[PhasePlan] = []
    nearest: PhasePlan | None = None
    for size in sizes:
        plans = list(
            candidates(Asked(asked.config, "decode", size, workload.max_length, asked.weights, asked.kv, pinned), on)
        )
        if fitting := [plan for plan in plans if plan.fits]:
            found.append(min(fitting, key=lambda plan: plan.rank))
        elif plans:
            nearest = min(plans, key=lambda plan: plan.memory.peak)
        if len(found) == _SLOT_CHOICES:
            break
    return found or [plan for plan in (nearest,) if plan]


def _prefill_choices(asked: JobAsked, on: Slice, mesh: MeshShape, bucket: int) -> list[PhasePlan]:
    """The best layouts for each number of tokens at a time."""
    found: list[PhasePlan] = []
    everywhere = Parts(chips=mesh.slice_chips, prefill_rows=mesh.slice_chips, stages=mesh.slices)
    sizes = (asked.prefill_tokens,) if asked.prefill_tokens else PREFILL_TOKENS
    for rows in dict.fromkeys(bucket_rows(bucket, tokens, everywhere) for tokens in sizes):
        phase = Asked(
            asked.config,
            asked.prompt_phase,
            rows,
            bucket,
            asked.weights,
            asked.kv,
            replace(asked.prefill, mesh=mesh),
        )
        plans = sorted(candidates(phase, on), key=lambda plan: plan.rank)
        found += list(itertools.islice((plan for plan in plans if plan.fits), _PREFILL_CHOICES)) or plans[:1]
    return found


# The choice.


def choose(
    plans: Sequence[JobPlan],
    goal: str,
    cost: Callable[[JobPlan], float],
    *,
    budget: float | None = None,
    deadline_seconds: float | None = None,
) -> JobPlan:
    """The cheapest; the fastest that costs no more than the budget; or the cheapest that is done by the deadline.

    Budget and deadline hold a standard deviation above what is foreseen.
    """

    def most(plan: JobPlan) -> float:
        return cost(plan) * plan.seconds_range[1] / plan.seconds

    if goal == "fastest":
        allowed = [plan for plan in plans if budget is None or most(plan) <= budget]
        if not allowed:
            least = min(plans, key=most)
            raise NoFeasiblePlan(
                f"no plan costs {budget:g} or less, its error included; the cheapest, {least.workers} x {least.on}, "
                f"costs up to {most(least):.2f}"
            )
        return min(allowed, key=lambda plan: (plan.seconds, cost(plan)))
    in_time = [plan for plan in plans if deadline_seconds is None or plan.seconds_range[1] <= deadline_seconds]
    if not in_time:
        least = min(plans, key=lambda plan: plan.seconds_range[1])
        raise NoFeasiblePlan(
            f"no plan is done within {deadline_seconds:g} s, its error included; the fastest, {least.workers} x "
            f"{least.on}, takes up to {least.seconds_range[1]:.0f} s. Allow more chips, or more time"
        )
    return min(in_time, key=lambda plan: (cost(plan), plan.seconds))


# Where there is no plan.


def _why_none(asked: JobAsked, slices: Sequence[Slice], too_large: Sequence[JobPlan]) -> NoFeasiblePlan:
    where = slice_names(slices)
    if not too_large:
        return NoFeasiblePlan(f"the model divides over no mesh of {where} in the layouts that the job pins; pin less")
    nearest = min(too_large, key=lambda plan: plan.peak_bytes / plan.on.limit_bytes)
    needs = {
        "weights": nearest.weight_bytes,
        "keys and values": nearest.cache_bytes,
        "activations": nearest.activation_bytes,
    }
    what = f"the job does not fit {where}"
    best = f"{nearest.on}, {nearest.slots} slots of {asked.workload.max_length} tokens"
    changes = _changes_that_fit(asked, nearest.on)
    return JobDoesNotFit(shortfall(what, best, nearest.peak_bytes, nearest.on.limit_bytes, needs, changes), nearest)


def _changes_that_fit(asked: JobAsked, on: Slice) -> Iterator[str]:
    small = {"int8 weights": replace(asked, weights="int8"), "an int8 cache": replace(asked, kv="int8")}
    yield from (change for change, changed in small.items() if changed != asked and _can_fit(changed, on))
    length = asked.workload.max_length // 2
    while length >= 128:
        if _can_fit(replace(asked, workload=replace(asked.workload, max_length=length)), on):
            yield f"sequences of at most {length} tokens"
            break
        length //= 2
    for larger in slices_of(on.chip, MOST_CHIPS):
        if larger.chips > on.chips and _can_fit(replace(asked, mesh=None), larger):
            yield f"{larger} ({larger.chips} chips)"
            return


def _can_fit(asked: JobAsked, on: Slice) -> bool:
    """Whether the least that is allowed fits: as few slots, and as few tokens at a time, as there can be."""
    workload = asked.workload
    bucket = buckets_of(workload)[-1]

    def peaks(phase: Phase, batch: int, context_tokens: int, pinned: Pinned) -> list[Memory]:
        some = Asked(asked.config, phase, batch, context_tokens, asked.weights, asked.kv, pinned)
        return [plan.memory for plan in candidates(some, on)]

    for mesh in meshes_to_try(asked.config, on, asked.mesh):
        slots = peaks("decode", asked.slots or MIN_ROWS, workload.max_length, replace(asked.decode, mesh=mesh))
        rows = bucket_rows(
            bucket,
            asked.prefill_tokens or bucket,
            Parts(chips=mesh.slice_chips, prefill_rows=mesh.slice_chips, stages=mesh.slices),
        )
        prompts = peaks(asked.prompt_phase, rows, bucket, replace(asked.prefill, mesh=mesh))
        if slots and prompts:
            held = min(slots, key=lambda memory: memory.peak)
            besides = min(memory.peak - memory.weights for memory in prompts)
            if max(held.peak, held.weights + held.cache + besides) <= on.limit_bytes:
                return True
    return False
