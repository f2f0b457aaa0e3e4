"""One plan of a whole job, and what it takes: how often its programs run, for how long, and what a device holds.

A worker is one slice with a copy of the model, and does its share of the shards. Its time is

    startup + sum over buckets of prefills x time of one + decode steps x time of one

with the counts of engine/planning/batching.py and the times of engine/planning/cost.py. Phases share a mesh and the
weights at rest. Both programs must fit beside the cache: a prefill's temporaries and results come on top of it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache

from engine.errors import NoFeasiblePlan
from engine.layout import Layouts
from engine.mesh import MeshShape
from engine.model.config import ModelConfig
from engine.planning.batching import Flow, Workload, buckets_of, play, scored
from engine.planning.buckets import Parts, bucket_rows, slot_rows
from engine.planning.planner import (
    Asked,
    PhasePlan,
    Pinned,
)
from engine.planning.program import Dtype, Phase, Program
from engine.planning.slices import Slice, Wraps

STARTUP_SECONDS = 300.0
"""Of a worker: reading the weights and compiling. An assumption; it is shown."""
STARTUP_ERROR = 0.5
"""Of what is assumed of a start, relative: one standard deviation."""


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
    """Of all workers together, where their number is to be chosen."""
    workers: int | None = None
    startup_seconds: float = STARTUP_SECONDS
    startup_error_fraction: float = STARTUP_ERROR
    """Of the start; 0 where somebody has said it."""

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

    def rough_padded_tokens(self) -> float:
        """That prefills compute, as though slots were in one part; that is known for many plans at once."""
        return _rough_padded_tokens(self.asked.workload, self.slots, self.requests, self.prefill_tokens, self.parts)

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
        """A step in the middle of the job."""
        rows = slot_rows(self.slots, self.parts.chips, self.parts.stages)
        full = self._phase("decode", rows, self.asked.workload.max_length)
        if not (self.flow and self.on.chip.reads_filled_pages):
            return full
        busy = max(1, round(self.slots * self.flow.busy_fraction))
        seen = min(self.asked.workload.mean_length, full.program.context_tokens)
        return replace(full, program=replace(full.program, idle_rows=rows - busy, seen_tokens=seen))

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
        """One standard deviation either way, of work and start, which err for different reasons."""
        start, work = self.asked.startup_seconds, self.prefill_seconds + self.decode_seconds
        error = math.hypot(work * self.error_fraction, start * self.asked.startup_error_fraction)
        return max(0.0, self.seconds - error), self.seconds + error

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


@lru_cache(maxsize=4096)
def _rough_padded_tokens(workload: Workload, slots: int, requests: int, prefill_tokens: int, parts: Parts) -> float:
    if workload.is_scoring:
        prefills = scored(workload, requests, prefill_tokens, parts)
    else:
        prefills = play(workload, slots, requests).prefills(prefill_tokens, parts)
    return sum(times * bucket * bucket_rows(bucket, prefill_tokens, parts) for bucket, times in prefills.items())


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
