"""Looped einsums against the product and the collective that they are, and in whole models."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from engine.compilation import placement
from engine.layout import Layouts
from engine.mesh import MeshShape
from engine.model.linear import linear
from engine.model.looped import gathered_product, scattered_product
from engine.model.quantized import Quantized, quantize
from tests.engine.tiny_models import all_logits
from tests.equivalence.test_layouts import TOKENS, TOLERANCE, on_chips, plain_logits

TOKEN_COUNT, INPUTS, OUTPUTS = 8, 48, 96


def operands(chips: int, int8: bool) -> tuple[Any, Any, Any]:
    """x, the weights, and a bias; where quantised, in scales that differ from output to output."""
    rng = np.random.default_rng(chips)
    x, weight = rng.standard_normal((TOKEN_COUNT, INPUTS)), rng.standard_normal((OUTPUTS, INPUTS))
    weight = (weight * np.linspace(1, 3, OUTPUTS)[:, None]).astype(np.float32)
    return jax.tree.map(
        jnp.asarray, (x.astype(np.float32), quantize(weight) if int8 else weight, np.arange(OUTPUTS, dtype=np.float32))
    )


def on_ring(chips: int, run: Callable[..., Any], in_specs: Any, out_specs: Any) -> Callable[..., Any]:
    mesh = Mesh(np.array(jax.devices()[:chips]), ("x",))
    return jax.jit(jax.shard_map(run, mesh=mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False))


@pytest.mark.parametrize("int8", [False, True])
@pytest.mark.parametrize(("chips", "direction"), [(2, 1), (3, -1), (4, 1), (8, -1)])
def test_a_product_scattered_over_its_outputs(chips: int, direction: int, int8: bool) -> None:
    x, weight, bias = operands(chips, int8)
    split = Quantized(P(None, "x"), P()) if int8 else P(None, "x")
    run = partial(scattered_product, axis="x", direction=direction)
    looped = on_ring(chips, lambda x, w, b: run(x, w, bias=b), (P(None, "x"), split, P("x")), P(None, "x"))
    np.testing.assert_allclose(looped(x, weight, bias), linear(x, weight, bias), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("int8", [False, True])
@pytest.mark.parametrize("chips", [2, 3, 4, 8])
def test_a_product_of_what_is_gathered(chips: int, int8: bool) -> None:
    x, weight, _ = operands(chips, int8)
    looped = on_ring(chips, partial(gathered_product, axis="x"), (P(None, "x"), P()), P())
    np.testing.assert_allclose(looped(x, weight), linear(x, weight), rtol=1e-5, atol=1e-4)


def test_each_chip_s_sum_is_sent_once_round() -> None:
    x, weight, _ = operands(4, int8=False)
    run = on_ring(4, lambda x, w: scattered_product(x, w, "x", 1), (P(None, "x"), P(None, "x")), P(None, "x"))
    assert str(jax.make_jaxpr(run)(x, weight)).count("ppermute[") == 3


@pytest.mark.parametrize(("model", "mesh"), [("palm", "4x2x1"), ("gpt2", "2x2x2")])
def test_a_model_with_looped_feed_forwards(model: str, mesh: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(placement, "looped_tokens", lambda kind: range(10_000))
    params, placed = on_chips(model, Layouts.of(MeshShape.parse(mesh), ("ws2d", "heads"), ("ws2d", "heads")))
    assert placed.prefill.loops(TOKENS.size)
    np.testing.assert_allclose(all_logits(params, placed, TOKENS), plain_logits(model), atol=TOLERANCE, rtol=0)
