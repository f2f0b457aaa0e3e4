"""The engine against Hugging Face transformers, on random Llama checkpoints: logits, tokens and log-probabilities."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from engine.families import read_config
from engine.model.decoder import logits
from engine.runtime.engine import Engine
from engine.runtime.request import GenerateRequest, Sampling, ScoreRequest
from engine.steps.prefill import prefill
from engine.weights.load import load_params
from tests.oracles.tiny_llama import make_tiny_llama, torch

MODELS: dict[str, dict[str, Any]] = {
    "grouped": {"heads": 4, "kv_heads": 2, "tied": False},
    "multihead tied": {"heads": 4, "kv_heads": 4, "tied": True},
    "multiquery": {"heads": 4, "kv_heads": 1, "tied": False},
    "llama3 rope": {"heads": 4, "kv_heads": 2, "tied": True, "rope": "llama3"},
    "linear rope": {"heads": 4, "kv_heads": 2, "tied": False, "rope": "linear"},
    "bf16 file": {"heads": 4, "kv_heads": 2, "tied": False, "dtype": "bfloat16"},
    "f16 file": {"heads": 4, "kv_heads": 2, "tied": True, "dtype": "float16"},
    "biases": {"heads": 4, "kv_heads": 2, "tied": False, "bias": True},
}
STEPS = 64


@dataclass
class Case:
    checkpoint: str
    oracle: Any
    prompts: list[tuple[int, ...]]


@pytest.fixture(scope="module", params=MODELS.values(), ids=MODELS.keys())
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    directory = tmp_path_factory.mktemp("llama")
    oracle = make_tiny_llama(directory, **request.param)
    rng = np.random.default_rng(0)
    prompts = [tuple(rng.integers(3, 320, length).tolist()) for length in (1, 2, 7, 31, 64, 65, 130)]
    return Case(str(directory), oracle, prompts)


def oracle_logits(oracle: Any, tokens: tuple[int, ...]) -> np.ndarray:
    with torch.no_grad():
        return oracle(torch.tensor([tokens])).logits[0].numpy()


def log_softmax(x: np.ndarray) -> np.ndarray:
    x = x.astype(np.float64)
    return x - np.logaddexp.reduce(x, axis=-1, keepdims=True)


def test_logits(case: Case) -> None:
    config = read_config(case.checkpoint).model
    params = load_params(case.checkpoint, config, dtype="float32", place=lambda _, array: jnp.asarray(array))
    run = jax.jit(lambda params, tokens: logits(params, prefill(params, config, tokens)[2][0]))
    for tokens in case.prompts:
        padded = np.zeros((1, 192), np.int32)
        padded[0, : len(tokens)] = tokens
        ours = np.asarray(run(params, padded))[: len(tokens)]
        np.testing.assert_allclose(ours, oracle_logits(case.oracle, tokens), atol=1e-4)


def test_greedy_tokens_and_their_logprobs(case: Case) -> None:
    sampling = Sampling(max_tokens=STEPS, ignore_eos=True)
    with Engine.load(case.checkpoint, dtype="float32", slots=8) as engine:
        futures = [engine.submit(GenerateRequest(prompt, sampling)) for prompt in case.prompts]
        scores = []
        for prompt, future in zip(case.prompts, futures, strict=True):
            (generation,) = future.result(timeout=240)
            tokens = torch.tensor([prompt])
            with torch.no_grad():
                expected = case.oracle.generate(
                    tokens,
                    attention_mask=torch.ones_like(tokens),
                    max_new_tokens=STEPS,
                    do_sample=False,
                    eos_token_id=None,
                    pad_token_id=0,
                )[0].tolist()[len(prompt) :]
            assert list(generation.token_ids) == expected
            every = log_softmax(oracle_logits(case.oracle, prompt + generation.token_ids))
            positions = np.arange(len(prompt) - 1, len(prompt) + STEPS - 1)
            np.testing.assert_allclose(generation.logprobs, every[positions, expected], atol=1e-4)
            text = prompt + generation.token_ids
            scores.append((engine.submit(ScoreRequest(text)), every[np.arange(len(text) - 1), text[1:]]))
        for future, expected_logprobs in scores:
            np.testing.assert_allclose(future.result(timeout=240).logprobs, expected_logprobs, atol=1e-4)


def test_bfloat16_is_as_close_as_the_oracle_is_in_bfloat16(case: Case) -> None:
    """Our error against float32 is no more than transformers' own, a half allowed for chance."""
    config = read_config(case.checkpoint).model
    params = load_params(case.checkpoint, config, dtype="bfloat16", place=lambda _, array: jnp.asarray(array))
    tokens = case.prompts[4]
    run = jax.jit(lambda params, tokens: logits(params, prefill(params, config, tokens)[2][0]))
    ours = np.asarray(run(params, np.array([tokens], np.int32)))
    expected = oracle_logits(case.oracle, tokens)
    low = type(case.oracle).from_pretrained(case.checkpoint, dtype=torch.bfloat16).eval()
    with torch.no_grad():
        theirs = low(torch.tensor([tokens])).logits[0].float().numpy()
    assert np.abs(ours - expected).mean() < 1.5 * np.abs(theirs - expected).mean()
