"""The collectives that a program really issues, read from its trace on a mesh of any size, without its devices."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, Jaxpr, Var
from jax.sharding import AbstractMesh, AxisType

from engine.compilation.options import DecodeOptions
from engine.compilation.placement import Placement
from engine.compilation.programs import Program, ProgramSet
from engine.layout import Layouts
from engine.mesh import AXES
from engine.model.config import ModelConfig
from engine.model.params import Parameter, build
from engine.model.quantized import Quantized
from engine.planning.buckets import Parts
from engine.planning.collectives import Kind, Stage
from engine.steps.decode import empty_slots

_KINDS: dict[str, Kind] = {
    "all_gather": "all-gather",
    "reduce_scatter": "reduce-scatter",
    "all_to_all": "all-to-all",
    "ragged_all_to_all": "all-to-all",
    "psum": "all-reduce",
    "pmax": "all-reduce",
    "ppermute": "collective-permute",
}
_PAGE = 128


def traced_prefill(config: ModelConfig, layouts: Layouts, rows: int, seq: int, int8: bool = False) -> list[Stage]:
    """Of prefill up to the last layer's keys and values."""
    return _stages(*_prefill(config, layouts, rows, seq, int8))


def traced_score(config: ModelConfig, layouts: Layouts, rows: int, seq: int, int8: bool = False) -> list[Stage]:
    """Of scoring all positions."""
    return _stages(*_score(config, layouts, rows, seq, int8))


def product_flops_of_score(config: ModelConfig, layouts: Layouts, rows: int, seq: int) -> int:
    """On one chip."""
    return _products(_equations(_traced(*_score(config, layouts, rows, seq, False))))


def _score(config: ModelConfig, layouts: Layouts, rows: int, seq: int, int8: bool) -> tuple[Any, ...]:
    programs = _programs(config, layouts, rows, seq, int8)
    return programs, programs.score(rows, seq), _params(programs), _of(jnp.int32, rows, seq)


def product_flops_of_prefill(config: ModelConfig, layouts: Layouts, rows: int, seq: int) -> int:
    """On one chip."""
    return _products(_equations(_traced(*_prefill(config, layouts, rows, seq, False))))


def _prefill(config: ModelConfig, layouts: Layouts, rows: int, seq: int, int8: bool) -> tuple[Any, ...]:
    programs = _programs(config, layouts, rows, seq, int8)
    return programs, programs.prefill(rows, seq), _params(programs), _of(jnp.int32, rows, seq)


def traced_decode(config: ModelConfig, layouts: Layouts, slots: int, context: int, int8: bool = False) -> list[Stage]:
    """Of one step of decode, or one tick of it in a pipeline, without the alternatives that are sent only if wanted."""
    return _stages(*_decode(config, layouts, slots, context, int8))


def product_flops_of_decode(config: ModelConfig, layouts: Layouts, slots: int, context: int) -> int:
    """On one chip."""
    return _products(_equations(_traced(*_decode(config, layouts, slots, context, False))))


def cut_in_a_step_of_decode(config: ModelConfig, layouts: Layouts, slots: int, context: int) -> list[tuple[int, ...]]:
    """Shapes of the floating arrays of which a step of int8 decode takes this chip's part."""
    equations = list(_equations(_traced(*_decode(config, layouts, slots, context, True))))
    loops = [one.params["body_jaxpr"].jaxpr for one in equations if one.primitive.name == "while"]
    steps = max(loops, key=lambda body: len(body.eqns))  # the others are inside of it
    cut = [one.invars[0].aval for one in _equations(steps) if one.primitive.name == "dynamic_slice"]
    return [array.shape for array in cut if jnp.issubdtype(array.dtype, jnp.floating)]


def _decode(config: ModelConfig, layouts: Layouts, slots: int, context: int, int8: bool) -> tuple[Any, ...]:
    programs = _programs(config, layouts, slots, context, int8)
    options, parts = programs.options, programs.options.parts
    new_cache = programs.new_cache()
    cache = jax.eval_shape(_on_chips(programs, new_cache))
    shape = parts.of_slots * parts.of_sequence, slots // parts.of_slots, options.blocks_per_slot // parts.of_sequence
    state = jax.tree.map(lambda x: _of(x.dtype, *x.shape), empty_slots(slots, 4))
    table, most_steps = _of(jnp.int32, *shape), _of(jnp.int32)
    return programs, programs.decode(), _params(programs), cache, table, state, most_steps


def _of(dtype: Any, *shape: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, dtype)


def _programs(config: ModelConfig, layouts: Layouts, slots: int, context: int, int8: bool) -> ProgramSet:
    parts = Parts.of(layouts)
    blocks = -(-context // _PAGE)
    options = DecodeOptions(
        slots=slots,
        max_length=context,
        pages=slots // parts.of_slots * -(-blocks // parts.of_sequence) + 1,
        page_tokens=_PAGE,
        chunk_steps=1,
        prefill_tokens=slots * context,
        attention="paged",
        kv_dtype="bfloat16",
        parts=parts,
    )
    return ProgramSet(Placement(config, layouts), options, (2,), int8)


def _params(programs: ProgramSet) -> Any:
    def of(_: str, declared: Parameter) -> Any:
        if programs.int8_weights and declared.is_matrix:
            outputs = declared.shape[: len(declared.shape) - declared.inputs]
            return Quantized(_of(jnp.int8, *declared.shape), _of(jnp.float32, *outputs))
        return _of(jnp.bfloat16, *declared.shape)

    return build(programs.placement.config, of, programs.placement.held)


def _on_chips(programs: ProgramSet, program: Program) -> Any:
    sizes = _sizes(programs)
    mesh = AbstractMesh(tuple(sizes.values()), tuple(sizes), axis_types=(AxisType.Auto,) * len(sizes))
    return jax.shard_map(
        program.function, mesh=mesh, in_specs=program.in_specs, out_specs=program.out_specs, check_vma=False
    )


def _stages(programs: ProgramSet, program: Program, *args: Any) -> list[Stage]:
    equations = _equations(_traced(programs, program, *args))
    return list(_collectives(equations, _sizes(programs)))


def _sizes(programs: ProgramSet) -> dict[str, int]:
    """Of the mesh's axes, major first."""
    layouts = programs.placement.layouts
    return {axis: layouts.mesh.size((axis,)) for axis in (*layouts.prefill.over_slices, *AXES)}


def _traced(programs: ProgramSet, program: Program, *args: Any) -> Jaxpr:
    return jax.make_jaxpr(_on_chips(programs, program))(*args).jaxpr


def _products(equations: Iterable[Any]) -> int:
    """FLOPs of products without batch dimensions, which are those with a parameter; attention's have heads or rows."""
    flops = 0
    for equation in equations:
        if equation.primitive.name != "dot_general":
            continue
        (contracted, _), (batch, _) = equation.params["dimension_numbers"]
        if not batch:
            shape = equation.invars[0].aval.shape
            flops += 2 * equation.outvars[0].aval.size * math.prod(shape[dim] for dim in contracted)
    return flops


def _collectives(equations: Iterable[Any], sizes: dict[str, int]) -> Iterator[Stage]:
    for equation in equations:
        name, params = equation.primitive.name, equation.params
        if name not in _KINDS:
            continue
        stated = params.get("axes") or params["axis_name"]
        axes = (stated,) if isinstance(stated, str) else tuple(stated)
        ends = [(equation.outvars if name == "all_gather" else equation.invars)[0].aval]
        if name == "ragged_all_to_all":  # one end has room for the worst case
            ends.append(equation.invars[1].aval)
        moved = min(array.size * array.dtype.itemsize for array in ends)
        yield Stage(_KINDS[name], axes, math.prod(sizes[axis] for axis in axes), moved)


def _equations(jaxpr: Any) -> Iterator[Any]:
    """Those that a result depends on, as often as they run, and not what is inside of kernels.

    A `while` counts once (decode runs its body for one step); what a `cond` may do counts not at all, but where it asks
    for the platform, what is done on a TPU.
    """
    of_platform = {
        out for equation in jaxpr.eqns if equation.primitive.name == "platform_index" for out in equation.outvars
    }
    needed = {var for var in jaxpr.outvars if isinstance(var, Var)}
    live = []
    for equation in reversed(jaxpr.eqns):
        if any(var in needed for var in equation.outvars):
            live.append(equation)
            needed.update(var for var in equation.invars if isinstance(var, Var))
    for equation in reversed(live):
        yield equation
        name, params = equation.primitive.name, equation.params
        if name != "pallas_call" and (name != "cond" or equation.invars[0] in of_platform):
            inners = jax.tree.leaves(list(params.values()), is_leaf=_is_jaxpr)
            for inner in [one for one in inners if _is_jaxpr(one)][-1 if name == "cond" else 0 :]:
                inside = list(_equations(inner.jaxpr if isinstance(inner, ClosedJaxpr) else inner))
                yield from inside * params.get("length", 1)


def _is_jaxpr(value: Any) -> bool:
    return isinstance(value, ClosedJaxpr | Jaxpr)
