"""Gathers of weights that take their operand's memory: nothing is copied ahead of time, and no number is another."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from engine.compilation import placement
from engine.compilation.hlo_report import Copy, report
from engine.compilation.topology import Topology
from engine.compilation.tpu_compiler import compile_programs, mesh_axes
from engine.layout import Layouts
from engine.mesh import MeshShape
from engine.model.partition import gather_weight
from engine.model.quantized import LEVELS
from tests.engine.tiny_models import MODELS, all_logits, padded, place, random_weights

LAYERS, EMBED, FFN = 3, 8192, 8192


def layers_on_chips(mesh: Mesh, fused: bool) -> Iterator[tuple[str, Any, Any]]:
    """Products with matrices that are gathered one after the other."""

    def run(x: Any, weights: list[Any]) -> Any:
        for weight in weights:
            x, weight = lax.optimization_barrier((x, weight))
            x = jnp.tanh(jnp.tanh(x @ x.T) @ x @ gather_weight(weight, (("x",), ()), ("x",), fused))
        return x

    split = P("x")
    on_chips = jax.shard_map(run, mesh=mesh, in_specs=(P(), [split] * LAYERS), out_specs=P(), check_vma=False)
    weight = jax.ShapeDtypeStruct((EMBED, FFN), jnp.bfloat16, sharding=NamedSharding(mesh, split))
    x = jax.ShapeDtypeStruct((4096, EMBED), jnp.bfloat16, sharding=NamedSharding(mesh, P()))
    yield "layers", jax.jit(on_chips), (x, [weight] * LAYERS)


def copies_of(topology: Topology, fused: bool) -> tuple[Copy, ...]:
    (compiled,) = compile_programs(topology, topology.mesh, f"{__name__}:layers_on_chips", fused)
    return report(compiled.text, topology, mesh_axes(topology, topology.mesh), topology.mesh).copies


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="needs the TPU compiler")
def test_of_no_argument_a_copy_is_made() -> None:
    topology = Topology.parse("v6e:2x2")
    assert topology.chip.fused_gathers
    of_a_weight = EMBED * FFN * 2 // 2
    assert [one.bytes for one in copies_of(topology, fused=False)].count(of_a_weight) > LAYERS / 2
    assert of_a_weight not in [one.bytes for one in copies_of(topology, fused=True)]


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32, jnp.int8])
def test_gathered_so_a_matrix_is_the_same(dtype: Any) -> None:
    ends = [-LEVELS, LEVELS] if dtype == jnp.int8 else [jnp.finfo(dtype).min, jnp.finfo(dtype).max]
    weight = jnp.asarray([*ends, 0, -1, 1, 3, -5, 7] * 4, dtype).reshape(8, 4)
    mesh = Mesh(np.array(jax.devices()[:4]), ("x",))

    def run(weight: Any) -> Any:
        return gather_weight(weight, (("x",), ()), ("x",), fused=True)

    on_chips = jax.shard_map(run, mesh=mesh, in_specs=P("x"), out_specs=P(), check_vma=False)
    np.testing.assert_array_equal(jax.jit(on_chips)(weight), weight)


@pytest.mark.parametrize(
    "model", ["llama", *(pytest.param(model, marks=pytest.mark.slow) for model in ("palm", "mixtral"))]
)
def test_a_model_whose_weights_are_gathered_so(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """And whose keys and values are put in order layer by layer."""
    config, tokens = replace(MODELS[model], head_dim=128), np.arange(64, dtype=np.int32).reshape(8, 8)
    layouts = Layouts.of(MeshShape.parse("2x2x2"), ("wg-xyz", "batch"), ("ws2d", "batch"))
    found = []
    for fused in (False, True):
        monkeypatch.setattr(placement, "fused_gathers", lambda kind, fused=fused: fused)
        placed = placement.Placement.on_devices(config, layouts)
        assert placed.prefill.fused_gathers is fused
        found.append(all_logits(place(padded(random_weights(config), placed), placed), placed, tokens))
    np.testing.assert_array_equal(*found)
