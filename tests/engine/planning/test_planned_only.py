"""What is planned and not run yet: shared prefixes, draft models, weights in fp8 and int4."""

from __future__ import annotations

from dataclasses import replace

import pytest

from engine.errors import NoFeasiblePlan
from engine.layout import Layouts
from engine.mesh import MeshShape
from engine.planning.chips import named_chip
from engine.planning.cost import cost
from engine.planning.counts import counts
from engine.planning.memory import memory, weight_bytes
from engine.planning.named_models import named_model
from engine.planning.planner import Asked, Pinned, search
from engine.planning.program import Phase, Program
from engine.planning.slices import Slice
from engine.planning.speculation import Speculation

CONFIG = named_model("llama-3.1-8b")
POSITION_BYTES = 2 * 32 * 8 * 128 * 2


def program(phase: Phase, rows: int, context: int, shared: int = 0, chip: str = "h100") -> Program:
    layouts = Layouts.of(MeshShape(), ("ws2d", "heads"), ("ws2d", "heads"))
    return Program(CONFIG, named_chip(chip), layouts, phase, rows, context, shared_tokens=shared)


# Shared prefixes.


def test_a_shared_prefix_is_read_and_kept_once() -> None:
    alone, shared = program("decode", 32, 4096), program("decode", 32, 4096, 3072)
    assert counts(alone).kv_bytes == 32 * 4096 * POSITION_BYTES
    assert counts(shared).kv_bytes == (32 * 1024 + 3072) * POSITION_BYTES
    assert memory(shared).cache == (32 * 1024 + 3072) * POSITION_BYTES
    assert counts(shared).attention_flops == counts(alone).attention_flops  # every query sees all of it


def test_a_shared_prefix_is_computed_once() -> None:
    alone, shared = counts(program("prefill", 32, 4096)), counts(program("prefill", 32, 4096, 3072))
    assert shared.matmul_flops / alone.matmul_flops == pytest.approx((32 * 1024 + 3072) / (32 * 4096))
    pairs, once = 4096 * 4097 / 2, 3072 * 3073 / 2
    assert shared.positions / alone.positions == pytest.approx((32 * (pairs - once) + once) / (32 * pairs))


def test_something_is_each_sequence_s_own() -> None:
    with pytest.raises(NoFeasiblePlan, match="4096 shared tokens of 4096"):
        Asked(CONFIG, "decode", 8, 4096, shared_tokens=4096)


# Draft models: Leviathan et al. 2023, equation 1, and theorem 3.8 with figures of its table 1.


@pytest.mark.parametrize(
    ("acceptance", "guesses", "tokens"), [(0.6, 2, 1.96), (0.8, 5, 3.68928), (0.0, 4, 1.0), (1.0, 4, 5.0)]
)
def test_tokens_of_a_round(acceptance: float, guesses: int, tokens: float) -> None:
    assert Speculation(CONFIG, guesses, acceptance).tokens == pytest.approx(tokens)


def test_a_round_is_guesses_and_a_pass_over_them() -> None:
    target, draft = named_model("llama-3.1-70b"), CONFIG
    asked = Asked(target, "decode", 4, 2048, "int8", pinned=Pinned(MeshShape(1, 2, 2), "ws1d", "heads"))
    on = [Slice.parse("v5p:2x2x1")]
    plain = search(asked, on).plans[0]
    some = replace(asked, speculation=Speculation(draft, 4, 0.8))
    plan = search(some, on).plans[0]
    step = search(replace(asked, config=draft), on).plans[0]
    assert plan.draft
    assert plan.draft.seconds == pytest.approx(step.seconds, rel=0.05)
    assert plan.seconds == pytest.approx(plan.cost.seconds + 4 * plan.draft.seconds)
    assert plan.cost.counts.matmul_flops == pytest.approx(5 * plain.cost.counts.matmul_flops)
    assert plan.cost.kv_bytes == plain.cost.kv_bytes
    # Few sequences: the pass takes little longer than a step, and the theorem's factor is near.
    ratio = plan.draft.seconds / plain.seconds
    assert plain.seconds_per_token / plan.seconds_per_token == pytest.approx(3.3616 / (4 * ratio + 1), rel=0.12)
    assert plan.peak_bytes > plan.memory.peak + plan.draft.memory.weights
    assert sum(plan.bound_by.values()) == pytest.approx(1)


def test_many_sequences_are_slower_with_a_draft() -> None:
    """What a step computes then takes its time, and guesses that are refused are computed too."""
    pinned = Pinned(MeshShape(1, 2, 2), "ws1d", "heads")
    asked, on = (
        Asked(named_model("llama-3.1-70b"), "decode", 512, 512, "int8", pinned=pinned),
        [Slice.parse("v5p:2x2x1")],
    )
    some = replace(asked, speculation=Speculation(CONFIG, 4, 0.5))
    assert search(some, on).plans[0].seconds_per_token > search(asked, on).plans[0].seconds_per_token


@pytest.mark.parametrize(("guesses", "acceptance"), [(0, 0.5), (65, 0.5), (4, 1.5), (4, -0.1)])
def test_what_no_draft_can_be(guesses: int, acceptance: float) -> None:
    with pytest.raises(NoFeasiblePlan):
        Speculation(CONFIG, guesses, acceptance)


def test_a_draft_is_for_decode() -> None:
    with pytest.raises(NoFeasiblePlan, match="a prefill program guesses nothing"):
        Asked(CONFIG, "prefill", 8, 128, speculation=Speculation(CONFIG, 4, 0.5))


# Weights.


def test_bytes_of_weights() -> None:
    """int4: half a byte, and four for 128 numbers; others as many as their width, with a scale for each output."""
    one = program("decode", 8, 128)
    matrices = counts(one).weight_bytes / 2
    for weights, item in (("int8", 1), ("fp8", 1), ("int4", 0.5 + 4 / 128)):
        other = replace(one, weights=weights)
        assert counts(other).weight_bytes == pytest.approx(matrices * item, rel=1e-3)
        assert weight_bytes(other) == pytest.approx(weight_bytes(one) / 2 * item, rel=0.02)


def test_fp8_products_where_a_chip_has_them() -> None:
    """H100 and B200 state them, A100 and v5e do not: there they are computed in bfloat16, as int8 and int4 are."""
    for chip, faster in (("h100", 2.0e15 / 9.9e14), ("b200", 4.5 / 2.3), ("a100", 1), ("v5e", 1)):
        named = named_chip(chip)
        assert named.flops_per_second("fp8") / named.flops_per_second("bfloat16") == pytest.approx(faster)
        assert named.flops_per_second("int4") == named.flops_per_second("int8") == named.bf16_flops_per_second
    one = program("prefill", 8, 2048)
    assert cost(replace(one, weights="fp8")).parts["compute"] < cost(one).parts["compute"]
