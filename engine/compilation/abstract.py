"""The programs of a phase with their arguments as shapes alone: what a compiler needs, and no device.

These are the engine's own programs (engine/compilation/programs.py), so what is learned about them here holds there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from engine.compilation.options import MAX_STOP_TOKEN_IDS, DecodeOptions
from engine.compilation.placement import Placement
from engine.compilation.programs import Program, ProgramSet
from engine.errors import NoFeasiblePlan
from engine.layout import Layouts, check_divides
from engine.model.config import ModelConfig
from engine.model.params import Parameter, build
from engine.model.quantized import Quantized
from engine.planning.buckets import CHUNK_STEPS, PAGE_TOKENS, Parts
from engine.steps.decode import empty_slots


@dataclass(frozen=True)
class AbstractProgram:
    """`jitted.lower(*args).compile()` compiles it."""

    name: str
    jitted: Any
    args: tuple[Any, ...]
    donated: tuple[int, ...]


def prefill_programs(
    config: ModelConfig, layouts: Layouts, mesh: Mesh, rows: int, context_tokens: int, *, weights: str = "bfloat16"
) -> Sequence[AbstractProgram]:
    """Prefill of `rows` sequences of `context_tokens`. `weights` is bfloat16, float32 or int8."""
    programs = _programs(config, layouts, mesh, rows, context_tokens, weights)
    _check_rows(programs, rows, context_tokens)
    tokens = jax.ShapeDtypeStruct((rows, context_tokens), jnp.int32)
    return [_abstract(programs, programs.prefill(rows, context_tokens), (_params(programs, weights), tokens))]


def decode_programs(
    config: ModelConfig,
    layouts: Layouts,
    mesh: Mesh,
    slots: int,
    context_tokens: int,
    *,
    weights: str = "bfloat16",
    kv: str = "bfloat16",
) -> Sequence[AbstractProgram]:
    """One chunk of decode steps for `slots` samples, with a cache that holds `context_tokens` for each."""
    programs = _programs(config, layouts, mesh, slots, context_tokens, weights, kv)
    options = programs.options
    cache_program = programs.new_cache()
    cache = jax.eval_shape(programs.placement.on_all_chips(cache_program.function, (), cache_program.out_specs))
    state = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), empty_slots(options.slot_rows, MAX_STOP_TOKEN_IDS)
    )
    parts = options.parts
    if parts.of_sequence > 1:
        shape = (parts.of_sequence, options.slot_rows, options.blocks_per_slot // parts.of_sequence)
    else:
        shape = (parts.of_slots, options.slot_rows // parts.of_slots, options.blocks_per_slot)
    table = jax.ShapeDtypeStruct(shape, jnp.int32)
    args = (_params(programs, weights), cache, table, state, jax.ShapeDtypeStruct((), jnp.int32))
    return [_abstract(programs, programs.decode(), args)]


def _programs(
    config: ModelConfig,
    layouts: Layouts,
    mesh: Mesh,
    slots: int,
    context_tokens: int,
    weights: str,
    kv: str = "bfloat16",
) -> ProgramSet:
    check_divides(config, layouts)
    placement = Placement(config, layouts, mesh if mesh.size > 1 else None)
    parts = Parts.of(layouts)
    blocks = -(-context_tokens // PAGE_TOKENS)
    options = DecodeOptions(
        slots=slots,
        max_length=context_tokens,
        pages=-(-slots // parts.of_slots) * -(-blocks // parts.of_sequence) + 1,
        page_tokens=PAGE_TOKENS,
        chunk_steps=CHUNK_STEPS,
        prefill_tokens=slots * context_tokens,
        attention="contiguous",
        kv_dtype=kv,
        parts=parts,
    )
    return ProgramSet(placement, options, (2,), weights == "int8")


def _params(programs: ProgramSet, weights: str) -> Any:
    dtype = jnp.dtype("bfloat16" if weights == "int8" else weights)

    def of(_: str, declared: Parameter) -> Any:
        if weights == "int8" and declared.is_matrix:
            outputs = declared.shape[: len(declared.shape) - declared.inputs]
            return Quantized(jax.ShapeDtypeStruct(declared.shape, jnp.int8), jax.ShapeDtypeStruct(outputs, jnp.float32))
        return jax.ShapeDtypeStruct(declared.shape, dtype)

    return build(programs.placement.config, of, programs.placement.held)


def _abstract(programs: ProgramSet, program: Program, args: tuple[Any, ...]) -> AbstractProgram:
    mesh = programs.placement.mesh

    def placed(spec: Any, arg: Any) -> Any:
        if mesh is None or not isinstance(spec, P):
            return arg
        sharding = NamedSharding(mesh, spec)
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), arg)

    is_spec = lambda leaf: isinstance(leaf, P)  # noqa: E731
    shaped = tuple(
        jax.tree.map(placed, spec, arg, is_leaf=is_spec) for spec, arg in zip(program.in_specs, args, strict=True)
    )
    return AbstractProgram(program.name, program.jitted(programs.placement), shaped, program.donated)


def _check_rows(programs: ProgramSet, rows: int, context_tokens: int) -> None:
    needed = programs.options.rows(context_tokens)
    if needed != rows:
        raise NoFeasiblePlan(
            f"a prefill of {rows} x {context_tokens} tokens does not divide over the chips in this layout; the next "
            f"number of rows that does is {needed}"
        )
