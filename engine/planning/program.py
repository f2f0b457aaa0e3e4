"""A program as it is planned: one phase of a model on chips, over so many sequences. What it needs is counted from it.

engine/planning/memory.py says what it holds, engine/planning/cost.py how long it takes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Literal

from engine.layout import Axes, HeldSizes, Layout, Layouts, Rest, held_sizes
from engine.mesh import MeshShape
from engine.model.config import ModelConfig
from engine.model.params import Parameter, declare, declare_layer
from engine.planning.buckets import Parts, micro_batches
from engine.planning.chips import Chip

Phase = Literal["prefill", "decode", "score"]
Dtype = Literal["float32", "bfloat16", "int8", "fp8", "int4"]

DTYPES: dict[str, Dtype] = {"bf16": "bfloat16", "int8": "int8"}
"""By the names they are asked for, in what the engine runs on accelerators."""
PLANNED_DTYPES: dict[str, Dtype] = {**DTYPES, "fp8": "fp8", "int4": "int4"}
"""Weights that can be planned."""
DTYPE_NAMES = {dtype: name for name, dtype in PLANNED_DTYPES.items()}

ITEM_BYTES: dict[Dtype, int | float] = {"float32": 4, "bfloat16": 2, "int8": 1, "fp8": 1, "int4": 0.5}
SCALED: dict[Dtype, int | None] = {"int8": None, "fp8": None, "int4": 128}
"""Quantised weights: how many numbers share a scale in float32. None: all that lead to one output."""
MICRO_TOKENS = 16384
"""A feed-forward's (engine.model.partition.Partition)."""


@dataclass(frozen=True)
class Program:
    """Prefill or scoring of `rows` sequences, or a step of decode with as many slots."""

    config: ModelConfig
    chip: Chip
    layouts: Layouts
    phase: Phase
    rows: int
    context_tokens: int
    """Length of the sequences; in decode what the cache has room for, and how much of it a step reads."""
    weights: Dtype = "bfloat16"
    kv: Dtype = "bfloat16"
    micro_tokens: int = MICRO_TOKENS
    shared_tokens: int = 0
    """That all sequences begin with: computed once, kept once, and in decode read once for all."""
    tokens_a_row: int = 1
    """Of a step of decode: more than one where it verifies what a draft has guessed."""
    idle_rows: int = 0
    """Of `rows`: slots that are empty in a step of decode. They are computed, but where a chip reads only the filled
    pages of the cache, nothing is read for them."""
    seen_tokens: int | None = None
    """Of `context_tokens`, those that a step of decode reads; None: all."""

    @cached_property
    def held(self) -> HeldSizes:
        return _held_sizes(self.config, self.layouts)

    @cached_property
    def at_rest(self) -> Layout:
        """Where weights rest, whatever the phase; equal where only that is equal."""
        return _at_rest(self.layouts.mesh, self.layouts.decode.rest)

    @property
    def layout(self) -> Layout:
        """Of this phase."""
        return self.layouts.decode if self.phase == "decode" else self.layouts.prefill

    @property
    def chips(self) -> int:
        """Of the mesh: devices as jax shows them, of which a chip may have several."""
        return self.layouts.mesh.chips

    @property
    def tokens(self) -> int:
        """Of one pass through the model."""
        if self.phase == "decode":
            return self.rows * self.tokens_a_row
        return self.rows * (self.context_tokens - self.shared_tokens) + self.shared_tokens

    @property
    def stages(self) -> int:
        """Of a pipeline over slices; one where there is none."""
        return self.layouts.mesh.slices

    @property
    def stage_layers(self) -> int:
        return self.config.layers // self.stages

    @property
    def leaves_out_last(self) -> bool:
        """Whether the last layer computes keys and values alone; in a pipeline all stages run the same program."""
        return self.phase == "prefill" and self.stages == 1

    @property
    def pieces(self) -> int:
        """Micro-batches, or groups of slots, of which a stage of a pipeline has one at a time."""
        stages = self.layouts.mesh.slices
        if self.phase == "decode" or stages == 1:
            return stages
        return micro_batches(self.context_tokens, self.rows * self.context_tokens, Parts.of(self.layouts))

    @property
    def ticks(self) -> int:
        """In which every stage takes one of the pieces through its layers; while the pipeline fills and drains some of
        them do it for nobody. A step of decode is as many as there are groups: the next has begun before it ends."""
        return self.pieces if self.phase == "decode" else self.pieces + self.stages - 1

    @property
    def activation_bytes(self) -> int:
        return 4 if self.weights == "float32" else 2

    @cached_property
    def layer(self) -> dict[str, Parameter]:
        """What every layer has."""
        return declare_layer(self.config, self.held)

    @cached_property
    def outside_layers(self) -> dict[str, Parameter]:
        """What stands before the first layer and after the last."""
        params = declare(self.config, self.held)
        return {name: declared for name, declared in params.items() if name != "layers"}

    def part(self, size: int, axes: Axes) -> int:
        """Of a dimension, on one chip; rounded up."""
        return -(-size // self.layouts.mesh.size(axes))


@lru_cache(maxsize=4096)
def _held_sizes(config: ModelConfig, layouts: Layouts) -> HeldSizes:
    return held_sizes(config, layouts)


@lru_cache(maxsize=1024)
def _at_rest(mesh: MeshShape, rest: Rest) -> Layout:
    return Layout(mesh, "wg-xyz", "heads", rest)


@lru_cache(maxsize=1024)
def own_numbers(config: ModelConfig, held: HeldSizes, at_rest: Layout) -> dict[str, int]:
    """Of each parameter of a layer, and of what is outside of layers, on one chip at rest."""
    params = declare(config, held)
    everything = {name: declared for name, declared in params.items() if name != "layers"} | declare_layer(config, held)

    def own(declared: Parameter) -> int:
        split = at_rest.at_rest(declared.axes, held.kv_heads, config.expert_count)
        return math.prod(-(-size // at_rest.mesh.size(over)) for size, over in zip(declared.shape, split, strict=True))

    return {name: own(declared) for name, declared in everything.items()}
