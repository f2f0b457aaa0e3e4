"""The next token: filters against a sorting reference, draws against the distribution they claim to follow."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from engine.steps.sampling import SamplingRules, _draw, _filter, choose, in_runs

VOCAB = 300


def rules(slots: int, *, temperature=0.0, top_k=0, top_p=1.0, min_p=0.0, keys=None) -> SamplingRules:
    return SamplingRules(
        temperature=np.full(slots, temperature, np.float32),
        top_k=np.full(slots, top_k, np.int32),
        top_p=np.full(slots, top_p, np.float32),
        min_p=np.full(slots, min_p, np.float32),
        key=np.zeros((slots, 5), np.uint32) if keys is None else keys,
    )


@partial(jax.jit, static_argnums=4)
def chosen(logits, rules: SamplingRules, positions, allowed, loop: bool) -> jax.Array:
    """`choose` of whole rows."""
    return choose(in_runs(logits, -np.inf), rules, positions, in_runs(allowed, False), loop)


def reference_filter(probabilities: np.ndarray, top_k: int, top_p: float, min_p: float) -> np.ndarray:
    """Which tokens stay, by sorting, as Hugging Face's processors do one after the other."""
    keep = np.ones_like(probabilities, bool)
    order = np.argsort(-probabilities)
    if top_k:
        keep &= probabilities >= probabilities[order[top_k - 1]]
    if top_p < 1:
        left = np.where(keep, probabilities, 0)
        left /= left.sum()
        order = np.argsort(-left)
        reached = np.cumsum(left[order])
        last = int(np.argmax(reached >= top_p))
        keep &= left >= left[order[last]]
    return keep & (probabilities >= min_p * probabilities.max())


@pytest.mark.parametrize("top_k", [0, 1, 7, 300, pytest.param(299, marks=pytest.mark.slow)])
@pytest.mark.parametrize("top_p", [1.0, 0.999, 0.8, 0.3, 1e-6])
@pytest.mark.parametrize("min_p", [0.0, 0.05, pytest.param(1.0, marks=pytest.mark.slow)])
def test_filters_keep_what_sorting_keeps(top_k: int, top_p: float, min_p: float) -> None:
    logits = np.random.default_rng(0).standard_normal((8, VOCAB)) * np.linspace(0.3, 5, 8)[:, None]
    weights = np.exp(logits - logits.max(-1, keepdims=True)).astype(np.float32)
    runs = in_runs(jnp.asarray(weights), 0.0)
    out = np.asarray(jax.jit(jax.vmap(_filter))(runs, rules(8, top_k=top_k, top_p=top_p, min_p=min_p)))
    out = out.reshape(8, -1)[:, :VOCAB]
    for row in range(8):
        expected = reference_filter(weights[row].astype(np.float64), top_k, top_p, min_p)
        differs = np.flatnonzero((out[row] > 0) != expected)
        # A token within rounding of top_p's edge may fall on either side of it; nothing else may differ.
        assert len(differs) <= (1 if top_p < 1 else 0), (row, differs)
        np.testing.assert_array_equal(out[row][out[row] > 0], weights[row][out[row] > 0])


def test_ties_at_the_threshold_stay() -> None:
    weights = np.array([[1.0, 0.5, 0.5, 0.5, 0.25] + [0.0] * 3] * 8, np.float32)
    kept = np.asarray(jax.vmap(_filter)(in_runs(jnp.asarray(weights), 0.0), rules(8, top_k=2)))[0, 0, :8] > 0
    assert kept.tolist() == [True, True, True, True, False, False, False, False]


def test_draws_follow_the_distribution() -> None:
    """Chi-square over 40 000 draws; each uniform number is used once, as a different slot's."""
    rng = np.random.default_rng(1)
    probabilities = rng.dirichlet(np.full(VOCAB, 0.3))
    probabilities[rng.random(VOCAB) < 0.5] = 0
    probabilities /= probabilities.sum()
    draws = 40_000
    weights = np.tile(probabilities.astype(np.float32) / probabilities.max(), (draws, 1)).astype(np.float32)
    tokens = np.asarray(jax.jit(jax.vmap(_draw))(in_runs(jnp.asarray(weights), 0.0), rng.random(draws, np.float32)))
    seen = np.bincount(tokens, minlength=VOCAB)
    assert (seen[probabilities == 0] == 0).all()
    likely = probabilities * draws > 5
    chi2 = ((seen - probabilities * draws)[likely] ** 2 / (probabilities * draws)[likely]).sum()
    freedom = likely.sum()
    assert chi2 < freedom + 5 * np.sqrt(2 * freedom), (chi2, freedom)


@pytest.mark.parametrize("uniform", [0.0, 0.5, float(np.nextafter(np.float32(1), np.float32(0)))])
def test_a_draw_never_lands_on_an_impossible_token(uniform: float) -> None:
    rng = np.random.default_rng(2)
    weights = rng.random((64, 1000), np.float32) * (rng.random((64, 1000)) < 0.01)
    weights[:, 500] = 1e-9
    tokens = np.asarray(
        jax.vmap(_draw)(in_runs(jnp.asarray(weights, np.float32), 0.0), jnp.full(64, uniform, jnp.float32))
    )
    assert (weights[np.arange(64), tokens] > 0).all()


@pytest.mark.parametrize("loop", [True, False])
def test_temperature_zero_takes_the_most_likely_allowed_token_and_the_first_of_equals(loop: bool) -> None:
    logits = np.zeros((8, VOCAB), np.float32)
    logits[:, [5, 9, 11]] = [3, 3, 4]
    allowed = np.ones((8, VOCAB), bool)
    allowed[1, 11] = False
    tokens = np.asarray(chosen(logits, rules(8), np.zeros(8, np.int32), allowed, loop))
    assert tokens[0] == 11
    assert tokens[1] == 5


@pytest.mark.parametrize("loop", [True, False])
def test_a_key_is_seed_record_sample_and_position_alone(loop: bool) -> None:
    logits = np.tile(np.random.default_rng(3).standard_normal(VOCAB).astype(np.float32), (8, 1))
    allowed = np.ones((8, VOCAB), bool)
    keys = np.random.default_rng(4).integers(0, 2**32, (8, 5), dtype=np.uint32)
    positions = np.arange(8, dtype=np.int32)
    tokens = np.asarray(chosen(logits, rules(8, temperature=1.0, keys=keys), positions, allowed, loop))
    order = np.random.default_rng(5).permutation(8)
    moved = np.asarray(chosen(logits, rules(8, temperature=1.0, keys=keys[order]), positions[order], allowed, loop))
    np.testing.assert_array_equal(moved, tokens[order])
    for word in range(5):
        other = keys.copy()
        other[:, word] += np.uint32(1)
        changed = np.asarray(chosen(logits, rules(8, temperature=1.0, keys=other), positions, allowed, loop))
        assert (changed != tokens).any(), f"word {word} of the key has no influence"
    assert (
        np.asarray(chosen(logits, rules(8, temperature=1.0, keys=keys), positions + 8, allowed, loop)) != tokens
    ).any()


@pytest.mark.parametrize("loop", [True, False])
def test_slots_with_different_rules_do_not_disturb_each_other(loop: bool) -> None:
    rng = np.random.default_rng(6)
    logits = rng.standard_normal((8, VOCAB)).astype(np.float32) * 2
    allowed = np.ones((8, VOCAB), bool)
    keys = rng.integers(0, 2**32, (8, 5), dtype=np.uint32)
    mixed = SamplingRules(
        temperature=np.array([0, 1, 0.7, 0, 2, 1, 1, 0.1], np.float32),
        top_k=np.array([0, 5, 0, 3, 50, 1, 0, 0], np.int32),
        top_p=np.array([1, 1, 0.9, 0.5, 1, 1, 0.2, 1], np.float32),
        min_p=np.array([0, 0, 0, 0, 0.1, 0, 0, 0.5], np.float32),
        key=keys,
    )
    positions = np.arange(8, dtype=np.int32)
    together = np.asarray(chosen(logits, mixed, positions, allowed, loop))
    for slot in range(8):
        same = jax.tree.map(lambda x, slot=slot: np.repeat(x[slot : slot + 1], 8, axis=0), mixed)
        alone = np.asarray(
            chosen(np.repeat(logits[slot : slot + 1], 8, axis=0), same, np.full(8, slot, np.int32), allowed, loop)
        )
        assert (alone == together[slot]).all()
