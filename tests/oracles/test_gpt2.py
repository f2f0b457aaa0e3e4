"""The engine against transformers' GPT-2."""

from __future__ import annotations

from typing import Any

import pytest

from tests.oracles import agreement
from tests.oracles.agreement import Case, prompts
from tests.oracles.tiny_checkpoints import make_tiny

# Prompts are padded to more tokens than there are positions.
SIZES: dict[str, Any] = {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 100}
MODELS: dict[str, dict[str, Any]] = {
    "as published": {},
    "all else": {
        "tie_word_embeddings": False,
        "n_inner": 100,
        "scale_attn_weights": False,
        "activation_function": "gelu",
        "reorder_and_upcast_attn": True,
    },
}


@pytest.fixture(scope="module")
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    directory = tmp_path_factory.mktemp("gpt2")
    return Case(str(directory), make_tiny("GPT2", directory, head="LMHeadModel", **SIZES | MODELS[request.param]))


@pytest.mark.parametrize("case", MODELS, indirect=True)
def test_logits(case: Case) -> None:
    agreement.assert_same_logits(case, prompts(1, 7, 64, 100))


@pytest.mark.parametrize("case", ["as published"], indirect=True)
def test_greedy_tokens_and_their_logprobs(case: Case) -> None:
    agreement.assert_same_tokens_and_logprobs(case, prompts(66, 70), steps=24)


@pytest.mark.parametrize("case", ["as published"], indirect=True)
def test_bfloat16_is_as_close_as_the_oracle_is_in_bfloat16(case: Case) -> None:
    agreement.assert_as_close_in_bfloat16(case, *prompts(64))
