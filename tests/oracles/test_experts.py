"""The mixture of experts against transformers' Mixtral block."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from engine.model.config import Experts
from engine.model.expert_strategy import STRATEGIES
from tests.engine.model.test_experts import CONFIG, layout_of, on_mesh, on_one_chip

torch = pytest.importorskip("torch", reason="the oracle is transformers' MixtralSparseMoeBlock, which needs torch")
modeling = pytest.importorskip(
    "transformers.models.mixtral.modeling_mixtral", reason="the oracle is transformers' MixtralSparseMoeBlock"
)

TOKENS = 48
CASES = [Experts(8, 2), Experts(4, 1), Experts(6, 3)]


def oracle(experts: Experts, seed: int = 0) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray]:
    """Its parameters in our form, random tokens, and what it makes of them."""
    config = modeling.MixtralConfig(
        hidden_size=CONFIG.embed,
        intermediate_size=CONFIG.ffn,
        num_local_experts=experts.count,
        num_experts_per_tok=experts.per_token,
    )
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(seed)
        block = modeling.MixtralSparseMoeBlock(config).eval()
        for parameter in block.parameters():
            parameter.normal_(0.0, parameter.shape[-1] ** -0.5)
        block.gate.weight.mul_(3)
        x = torch.randn(TOKENS, CONFIG.embed)
        expected = block(x[None])[0]
    stored: dict[str, Any] = {name: value.numpy() for name, value in block.state_dict().items()}
    gate, up = np.split(stored["experts.gate_up_proj"], 2, axis=1)
    layer = {"router": stored["gate.weight"], "gate": gate, "up": up, "down": stored["experts.down_proj"]}
    return layer, x.numpy(), expected.numpy()


@pytest.mark.parametrize("experts", CASES, ids=str)
def test_one_chip(experts: Experts) -> None:
    layer, x, expected = oracle(experts)
    assert np.abs(expected).max() > 0.1
    np.testing.assert_allclose(on_one_chip(layer, x, replace(CONFIG, experts=experts)), expected, atol=1e-5)


def test_eight_chips() -> None:
    layer, x, expected = oracle(CASES[0])
    for out in on_mesh(layer, x, CONFIG, layout_of("2x2x2", "ws1d"), STRATEGIES):
        np.testing.assert_allclose(out, expected, atol=1e-5)
