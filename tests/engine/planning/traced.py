"""The collectives that a program really issues, read from its trace on a mesh of any size, without its devices."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, Jaxpr, Var

from engine.cache.pages import PagedCache
from engine.layout import DimAxes, HeldSizes, Layout
from engine.mesh import AXES
from engine.model.config import ModelConfig
from engine.model.params import Parameter, Params, build
from engine.model.partition import Partition
from engine.model.quantized import Quantized
from engine.planning.volumes import Kind, Stage
from engine.steps.decode import Slots, decode
from engine.steps.prefill import prefill
from engine.steps.sampling import SamplingRules

_KINDS: dict[str, Kind] = {
    "all_gather": "all-gather",
    "reduce_scatter": "reduce-scatter",
    "all_to_all": "all-to-all",
    "psum": "all-reduce",
    "pmax": "all-reduce",
}
_PAGE = 128


def traced_prefill(
    config: ModelConfig, held: HeldSizes, layout: Layout, rows: int, seq: int, int8: bool = False
) -> list[Stage]:
    """Of prefill up to the last layer's keys and values."""
    tokens = jax.ShapeDtypeStruct((rows, seq), jnp.int32)
    return _stages(
        lambda params, tokens: prefill(params, Partition(config, held, layout), tokens)[:2],
        layout,
        _own_params(config, held, layout, int8),
        tokens,
    )


def traced_decode(
    config: ModelConfig, held: HeldSizes, layout: Layout, slots: int, context: int, int8: bool = False
) -> list[Stage]:
    """Of one step of decode, without the alternatives that are sent only if wanted."""
    size = layout.mesh.size
    blocks = -(-context // _PAGE // size(layout.attention_sequence))
    own_slots = slots // size(layout.attention_rows)
    kv_heads = max(1, held.kv_heads // size(layout.attention_heads))
    pool = jax.ShapeDtypeStruct((own_slots * blocks + 1, kv_heads, _PAGE, config.head_dim), jnp.bfloat16)
    cache = PagedCache([pool] * config.layers, [pool] * config.layers)
    table = jax.ShapeDtypeStruct((1, own_slots, blocks), jnp.int32)

    def program(params: Params, cache: PagedCache, table: Any, slots: Slots) -> Any:
        model = Partition(config, held, layout)
        return decode(params, model, cache, table, slots, (2,), jnp.int32(1), 1, loop_over_slots=False)

    return _stages(program, layout, _own_params(config, held, layout, int8), cache, table, _slots(slots))


def _own_params(config: ModelConfig, held: HeldSizes, layout: Layout, int8: bool) -> Params:
    """One chip's part of the parameters, as shapes."""

    def of(_: str, declared: Parameter) -> Any:
        shape = _own(declared.shape, layout.at_rest(declared.axes, held.kv_heads), layout)
        if int8 and declared.is_matrix:
            scales = declared.shape[: len(declared.shape) - declared.inputs]
            return Quantized(jax.ShapeDtypeStruct(shape, jnp.int8), jax.ShapeDtypeStruct(scales, jnp.float32))
        return jax.ShapeDtypeStruct(shape, jnp.bfloat16)

    return build(config, of, held)


def _own(shape: tuple[int, ...], split: DimAxes, layout: Layout) -> tuple[int, ...]:
    return tuple(size // layout.mesh.size(axes) for size, axes in zip(shape, split, strict=True))


def _slots(count: int) -> Slots:
    def of(dtype: Any, *shape: int) -> Any:
        return jax.ShapeDtypeStruct((count, *shape), dtype)

    ints, floats, bools = of(jnp.int32), of(jnp.float32), of(jnp.bool_)
    rules = SamplingRules(temperature=floats, top_k=ints, top_p=floats, min_p=floats, key=of(jnp.uint32, 5))
    stops = of(jnp.int32, 4)
    return Slots(ints, ints, ints, ints, ints, ints, stops, bools, bools, rules)


def _stages(program: Any, layout: Layout, *args: Any) -> list[Stage]:
    axis_env = [(axis, layout.mesh.size((axis,))) for axis in AXES]
    traced = jax.make_jaxpr(program, axis_env=axis_env)(*args)
    return list(_collectives(traced.jaxpr, dict(axis_env)))


def _collectives(jaxpr: Any, sizes: dict[str, int]) -> Iterator[Stage]:
    """Of those equations that a result depends on; a loop's body counts once, what a `cond` may do not at all."""
    needed = {var for var in jaxpr.outvars if isinstance(var, Var)}
    live = []
    for equation in reversed(jaxpr.eqns):
        if any(var in needed for var in equation.outvars):
            live.append(equation)
            needed.update(var for var in equation.invars if isinstance(var, Var))
    for equation in reversed(live):
        name, params = equation.primitive.name, equation.params
        if name in _KINDS:
            stated = params.get("axes") or params["axis_name"]
            axes = (stated,) if isinstance(stated, str) else tuple(stated)
            array = (equation.outvars if name == "all_gather" else equation.invars)[0].aval
            chips = math.prod(sizes[axis] for axis in axes)
            yield Stage(_KINDS[name], axes, chips, array.size * array.dtype.itemsize)
        elif name != "cond":
            for inner in jax.tree.leaves(list(params.values()), is_leaf=_is_jaxpr):
                if _is_jaxpr(inner):
                    yield from _collectives(inner.jaxpr if isinstance(inner, ClosedJaxpr) else inner, sizes)


def _is_jaxpr(value: Any) -> bool:
    return isinstance(value, (ClosedJaxpr, Jaxpr))
