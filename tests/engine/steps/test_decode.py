"""What a step of decode does again and again, and what it must not."""

from __future__ import annotations

from dataclasses import replace

import pytest

from engine.layout import AttentionSharding, Feedforward, Layouts
from engine.mesh import MeshShape
from engine.planning.named_models import named_model
from tests.engine.planning.traced import cut_in_a_step_of_decode

SLOTS = 64


@pytest.mark.parametrize("how", [("ws2d", "batch"), ("ws1d", "heads"), ("wg-x", "batch")])
def test_no_step_cuts_a_norm_or_a_scale(how: tuple[Feedforward, AttentionSharding]) -> None:
    """Only what it has just computed: each cut takes a TPU a microsecond, in every layer of every step."""
    config = replace(named_model("llama-3.1-70b"), layers=1, windows=(None,))
    layouts = Layouts.of(MeshShape.parse("4x4x1"), how, how)
    assert all(shape[0] == SLOTS for shape in cut_in_a_step_of_decode(config, layouts, SLOTS, 256))
