"""What TPUs run in place of what CPUs do where there are few rows: the same numbers, in other shapes."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from engine.compilation.placement import Placement
from engine.layout import Layouts
from engine.mesh import MeshShape
from engine.model.norms import layer_norm, rms_norm
from engine.model.reductions import log_sum_exp
from engine.steps.sampling import SamplingRules, choose, in_runs
from tests.engine.tiny_models import MODELS, all_logits, padded, place, random_weights

RNG = np.random.default_rng(0)


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """From here on what is traced takes the accelerators' forms; their names."""
    names: list[str] = []

    def elsewhere(*args: Any, default: Any, cpu: Any) -> Any:
        names.append(getattr(default, "__name__", "") or default.func.__name__)
        return default(*args)

    monkeypatch.setattr(lax, "platform_dependent", elsewhere)
    return names


@pytest.mark.parametrize("norm", [rms_norm, layer_norm])
def test_norms_of_few_rows_that_are_split_over_chips(norm: Any, taken: list[str]) -> None:
    x, scale = RNG.standard_normal((4, 4096), np.float32), RNG.standard_normal(4096, np.float32)
    mesh = Mesh(np.array(jax.devices()[:4]), ("x",))
    split = jax.shard_map(
        lambda x, scale: norm(x, scale, 1e-5, embed_axes=("x",)),
        mesh=mesh,
        in_specs=(P(None, "x"), P("x")),
        out_specs=P(None, "x"),
        check_vma=False,
    )
    got = jax.jit(split)(x, scale)
    assert "by_run" in taken
    np.testing.assert_allclose(got, norm(jnp.asarray(x), jnp.asarray(scale), 1e-5), atol=1e-5)


def test_sums_of_exponentials_in_runs(taken: list[str]) -> None:
    x = RNG.standard_normal((3, 1280), np.float32) * 5
    got = log_sum_exp(jnp.asarray(x))
    assert taken == ["in_runs"]
    np.testing.assert_allclose(got, np.log(np.exp(x.astype(np.float64)).sum(-1)), rtol=1e-6)


def test_three_bits_of_a_threshold_at_a_time_find_the_same_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    logits = in_runs(jnp.asarray(RNG.standard_normal((64, 300), np.float32) * 3), -np.inf)
    rules = SamplingRules(
        temperature=np.full(64, 1, np.float32),
        top_k=np.tile(np.array([0, 1, 5, 299], np.int32), 16),
        top_p=np.tile(np.array([0.2, 0.9, 1, 1e-6, 0.5], np.float32), 13)[:64],
        min_p=np.zeros(64, np.float32),
        key=RNG.integers(0, 2**32, (64, 5), dtype=np.uint32),
    )

    def tokens() -> np.ndarray:
        return np.asarray(choose(logits, rules, jnp.arange(64), jnp.ones(logits.shape, bool), False))

    here = tokens()
    monkeypatch.setattr(lax, "platform_dependent", lambda *args, default, cpu: default(*args))
    np.testing.assert_array_equal(tokens(), here)


@pytest.mark.parametrize(("model", "mesh"), [("llama", "4x2x1"), ("llama", "2x2x2"), ("gpt2", "4x2x1")])
def test_keys_and_values_of_few_tokens_go_everywhere(model: str, mesh: str, taken: list[str]) -> None:
    config, tokens = MODELS[model], RNG.integers(0, 325, (8, 1)).astype(np.int32)
    found = []
    for layouts in (Layouts(), Layouts.of(MeshShape.parse(mesh), ("ws2d", "batch"), ("ws2d", "batch"))):
        placement = Placement.on_devices(config, layouts)
        found.append(all_logits(place(padded(random_weights(config), placement), placement), placement, tokens))
    assert "everywhere" in taken
    np.testing.assert_allclose(found[1], found[0], atol=1e-4)
