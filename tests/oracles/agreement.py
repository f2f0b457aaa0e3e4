"""What it means that the engine and transformers agree on a checkpoint: logits, greedy tokens, log-probabilities."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from engine.families import read_config
from engine.model.decoder import logits
from engine.model.partition import Partition
from engine.runtime.engine import Engine
from engine.runtime.request import GenerateRequest, Sampling, ScoreRequest
from engine.steps.prefill import prefill
from engine.weights.load import load_params
from tests.oracles.tiny_checkpoints import VOCAB, torch

Tokens = tuple[int, ...]


@dataclass
class Case:
    checkpoint: str
    oracle: Any


def prompts(*lengths: int) -> list[Tokens]:
    rng = np.random.default_rng(0)
    return [tuple(rng.integers(3, VOCAB, length).tolist()) for length in lengths]


def oracle_logits(oracle: Any, tokens: Tokens) -> np.ndarray:
    with torch.no_grad():
        return oracle(torch.tensor([tokens])).logits[0].float().numpy()


def engine_logits(checkpoint: str, dtype: str, prompts: list[Tokens]) -> list[np.ndarray]:
    """Of every position of every prompt."""
    model = Partition.single(read_config(checkpoint).model)
    params = load_params(checkpoint, model.config, dtype=dtype, place=lambda _, array: jnp.asarray(array))
    run = jax.jit(lambda params, tokens: logits(params, model, prefill(params, model, tokens)[2]))
    padded = np.zeros((len(prompts), max(map(len, prompts))), np.int32)
    for row, tokens in enumerate(prompts):
        padded[row, : len(tokens)] = tokens
    out = np.asarray(run(params, padded)).reshape(*padded.shape, -1)
    return [rows[: len(tokens)] for rows, tokens in zip(out, prompts, strict=True)]


def log_softmax(x: np.ndarray) -> np.ndarray:
    x = x.astype(np.float64)
    return x - np.logaddexp.reduce(x, axis=-1, keepdims=True)


def assert_same_logits(case: Case, prompts: list[Tokens]) -> None:
    for tokens, ours in zip(prompts, engine_logits(case.checkpoint, "float32", prompts), strict=True):
        np.testing.assert_allclose(ours, oracle_logits(case.oracle, tokens), atol=1e-4)


def assert_same_tokens_and_logprobs(case: Case, prompts: list[Tokens], steps: int) -> None:
    """Of greedy continuations, and of the whole texts when they are scored.

    A continuation is the oracle's if each token is its likeliest after those before; one pass over the text has all.
    """
    sampling = Sampling(max_tokens=steps, ignore_eos=True)
    with Engine.load(case.checkpoint, dtype="float32", slots=8) as engine:
        futures = [engine.submit(GenerateRequest(prompt, sampling)) for prompt in prompts]
        scores = []
        for prompt, future in zip(prompts, futures, strict=True):
            (generation,) = future.result(timeout=240)
            assert len(generation.token_ids) == steps
            every = log_softmax(oracle_logits(case.oracle, prompt + generation.token_ids))
            positions = np.arange(len(prompt) - 1, len(prompt) + steps - 1)
            expected = every[positions].argmax(axis=-1)
            assert list(generation.token_ids) == expected.tolist()
            np.testing.assert_allclose(generation.logprobs, every[positions, expected], atol=1e-4)
            text = prompt + generation.token_ids
            scores.append((engine.submit(ScoreRequest(text)), every[np.arange(len(text) - 1), text[1:]]))
        for future, expected_logprobs in scores:
            np.testing.assert_allclose(future.result(timeout=240).logprobs, expected_logprobs, atol=1e-4)


def assert_as_the_oracle_generates(case: Case, prompts: list[Tokens], steps: int) -> None:
    """Token by token, through the oracle's own cache."""
    with Engine.load(case.checkpoint, dtype="float32", slots=8) as engine:
        sampling = Sampling(max_tokens=steps, ignore_eos=True)
        futures = [engine.submit(GenerateRequest(prompt, sampling)) for prompt in prompts]
        for prompt, future in zip(prompts, futures, strict=True):
            tokens = torch.tensor([prompt])
            with torch.no_grad():
                expected = case.oracle.generate(
                    tokens,
                    attention_mask=torch.ones_like(tokens),
                    max_new_tokens=steps,
                    do_sample=False,
                    eos_token_id=None,
                    pad_token_id=0,
                )[0].tolist()[len(prompt) :]
            assert list(future.result(timeout=240)[0].token_ids) == expected


def assert_as_close_in_bfloat16(case: Case, tokens: Tokens) -> None:
    """Our error against float32 is no more than transformers' own, a half allowed for chance."""
    (ours,) = engine_logits(case.checkpoint, "bfloat16", [tokens])
    expected = oracle_logits(case.oracle, tokens)
    low = type(case.oracle).from_pretrained(case.checkpoint, dtype=torch.bfloat16, attn_implementation="eager").eval()
    theirs = oracle_logits(low, tokens)
    assert np.abs(ours - expected).mean() < 1.5 * np.abs(theirs - expected).mean()
