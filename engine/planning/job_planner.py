"""The search for a whole job: chips, mesh, the layout of each phase, slots, how many tokens a prefill takes, workers.

First each phase by itself is ranked on every mesh, for the most common bucket; then the few best pairs that fit
together are counted in full (job_cost.py), and those for several workers.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

from engine.errors import NoFeasiblePlan
from engine.layout import HeldSizes, indivisible
from engine.mesh import MeshShape
from engine.model.config import ModelConfig
from engine.model.params import declare_layer
from engine.planning.batching import Workload, buckets_of
from engine.planning.buckets import MIN_ROWS, Parts, bucket_rows
from engine.planning.job_cost import JobAsked, JobDoesNotFit, JobPlan
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
from engine.planning.program import ITEM_BYTES, Dtype, Phase
from engine.planning.slices import Slice, slices_of

PREFILL_TOKENS = (8192, 65_536, 524_288)
_SLOTS = tuple(2**power for power in range(3, 13))
_SLOT_CHOICES = 3
_PREFILL_CHOICES = 2
_COUNTED_IN_FULL = 3


def job_plans(asked: JobAsked, slices: Sequence[Slice]) -> list[JobPlan]:
    """The best plans of every slice, for every number of workers that there are chips and shards for; NoFeasiblePlan
    says why there is none."""
    slices = _small_enough(asked, slices)
    if not slices:
        raise NoFeasiblePlan(f"no slice has {asked.most_chips} chips or fewer; allow more")
    found = fitting_plans(asked, slices)
    if not found:
        raise _why_none(asked, slices, _found(asked, slices)[1])
    return found


def fitting_plans(asked: JobAsked, slices: Sequence[Slice]) -> list[JobPlan]:
    """The same, for who has other things to ask: none where there is none, and why is not worked out."""
    least = _least_weight_bytes(asked.config, asked.weights)
    large = [on for on in _small_enough(asked, slices) if least <= on.limit_bytes * on.chips * on.chip.devices]
    return _found(asked, large)[0]


@lru_cache(maxsize=64)
def _least_weight_bytes(config: ModelConfig, weights: Dtype) -> float:
    """Of the matrices of all layers, on all chips together: a slice that has no room for these need not be searched."""
    layer = declare_layer(config, HeldSizes(config.heads, config.kv_heads, config.vocab))
    return float(config.layers) * ITEM_BYTES[weights] * sum(one.size for one in layer.values() if one.is_matrix)


def _small_enough(asked: JobAsked, slices: Sequence[Slice]) -> list[Slice]:
    return [on for on in slices if asked.workers is not None or on.chips <= asked.most_chips]


def _found(asked: JobAsked, slices: Sequence[Slice]) -> tuple[list[JobPlan], list[JobPlan]]:
    """Plans that fit, and of slices where none does the one that lacks the least."""
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
    return found, nearest


def _workers(asked: JobAsked, on: Slice) -> Iterator[int]:
    if asked.workers is not None:
        yield asked.workers
        return
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
                held, other = decode.memory, prompt.memory
                yield _Rough(
                    plan,
                    plan.rough_padded_tokens() * prompt.rank / prompt.tokens + plan.rough_steps() * decode.rank,
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
