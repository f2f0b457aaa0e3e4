"""The engine against Hugging Face transformers, on random Llama checkpoints: logits, tokens and log-probabilities."""

from __future__ import annotations

from typing import Any

import pytest

from tests.oracles import agreement
from tests.oracles.agreement import Case, prompts
from tests.oracles.tiny_llama import make_tiny_llama

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
LENGTHS = (1, 2, 7, 31, 64, 65, 130)


@pytest.fixture(scope="module")
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    directory = tmp_path_factory.mktemp("llama")
    return Case(str(directory), make_tiny_llama(directory, **MODELS[request.param]))


@pytest.mark.parametrize("case", MODELS, indirect=True)
def test_logits(case: Case) -> None:
    agreement.assert_same_logits(case, prompts(*LENGTHS))


@pytest.mark.parametrize(
    "case",
    [
        "grouped",
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("multihead tied", "multiquery", "llama3 rope")),
    ],
    indirect=True,
)
def test_greedy_tokens_and_their_logprobs(case: Case) -> None:
    agreement.assert_same_tokens_and_logprobs(case, prompts(*LENGTHS), steps=64)


@pytest.mark.parametrize("case", ["grouped"], indirect=True)
def test_tokens_are_those_that_transformers_generates(case: Case) -> None:
    agreement.assert_as_the_oracle_generates(case, prompts(7, 65), steps=64)


@pytest.mark.parametrize("case", ["grouped", "multihead tied", "llama3 rope", "biases"], indirect=True)
def test_bfloat16_is_as_close_as_the_oracle_is_in_bfloat16(case: Case) -> None:
    agreement.assert_as_close_in_bfloat16(case, *prompts(64))
