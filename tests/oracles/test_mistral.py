"""The engine against transformers' Mistral."""

from __future__ import annotations

from typing import Any

import pytest

from tests.oracles import agreement
from tests.oracles.agreement import Case, prompts
from tests.oracles.tiny_checkpoints import make_tiny

SIZES: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
}
MODELS: dict[str, dict[str, Any]] = {
    "as published": {"sliding_window": 24},
    "no window": {"sliding_window": None, "tie_word_embeddings": True, "head_dim": 24},
}


@pytest.fixture(scope="module")
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    directory = tmp_path_factory.mktemp("mistral")
    return Case(str(directory), make_tiny("Mistral", directory, **SIZES | MODELS[request.param]))


@pytest.mark.parametrize("case", MODELS, indirect=True)
def test_logits(case: Case) -> None:
    agreement.assert_same_logits(case, prompts(1, 7, 64, 130))


@pytest.mark.parametrize("case", ["as published"], indirect=True)
def test_greedy_tokens_and_their_logprobs(case: Case) -> None:
    agreement.assert_same_tokens_and_logprobs(case, prompts(66, 70), steps=24)


@pytest.mark.parametrize("case", ["as published"], indirect=True)
def test_bfloat16_is_as_close_as_the_oracle_is_in_bfloat16(case: Case) -> None:
    agreement.assert_as_close_in_bfloat16(case, *prompts(64))
