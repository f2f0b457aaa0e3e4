"""Which way tokens meet their experts, by hand and as a rule."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.layout import Feedforward, Layout
from engine.mesh import MeshShape
from engine.model.config import Experts, ModelConfig
from engine.model.expert_strategy import (
    EXCHANGE_BYTES,
    HOP_BYTES,
    STRATEGIES,
    entered_over,
    expert_axes,
    link_bytes,
    strategy,
)

MIXTRAL = ModelConfig(
    layers=32,
    embed=4096,
    ffn=14336,
    heads=32,
    kv_heads=8,
    head_dim=128,
    vocab=32000,
    context_tokens=32768,
    norm_epsilon=1e-5,
    rotary=None,
    tied_head=False,
    experts=Experts(8, 2),
)
BF16 = (2, 2)


def layout_of(mesh: str, ffn: Feedforward) -> Layout:
    return Layout(MeshShape.parse(mesh), ffn, rest="1d" if ffn == "ws1d" else "2d")


@pytest.mark.parametrize(
    ("mesh", "ffn", "experts", "over", "entered_apart"),
    [
        ("4x4", "ws1d", 8, ("y",), ("x",)),
        ("4x4", "ws2d", 8, ("y",), ()),
        ("4x4x4", "ws2d", 8, ("z",), ("y",)),
        ("4x4x4", "ws2d", 16, ("z", "y"), ()),
        ("4x4x4", "wg-xy", 16, ("z",), ()),
        ("4x4x4", "wg-xyz", 16, (), ()),
        ("4x4x4", "ws2d", 6, (), ("y", "z")),
        ("2x2x2", "ws1d", 8, ("z", "y", "x"), ()),
    ],
)
def test_expert_axes(mesh: str, ffn: Feedforward, experts: int, over: tuple, entered_apart: tuple) -> None:
    layout = layout_of(mesh, ffn)
    assert expert_axes(experts, layout) == over
    assert entered_over("everywhere", experts, layout) == layout.entry
    assert entered_over("sent", experts, layout) == entered_over("gathered", experts, layout) == entered_apart


def test_bytes_by_hand() -> None:
    """64 tokens of 8192 bytes, 16 of them on a chip beside the expert axis y; x has the rest of ffn."""
    layout = layout_of("4x4", "ws1d")

    def bytes_of(how: str) -> float:
        return link_bytes(how, 64, MIXTRAL, layout, *BF16)  # pyright: ignore

    entry_and_exit = 2 * 64 * 8192 * 15 / 16
    assert bytes_of("everywhere") == entry_and_exit + (2 * 4) * HOP_BYTES
    along_x, there_and_back = 2 * 16 * 8192 * 3 / 4, 2 * (2 * 16) * 8192 * 1
    assert bytes_of("sent") == along_x + there_and_back + (2 * 2 + 3 * 2) * HOP_BYTES + EXCHANGE_BYTES
    quarter_of_the_weights = 3 * 8 * 4096 * 14336 * 2 / 4
    assert bytes_of("gathered") == along_x + quarter_of_the_weights * 3 / 4 + (2 * 2 + 3 * 2) * HOP_BYTES


@pytest.mark.parametrize(
    ("tokens", "way"), [(8, "everywhere"), (256, "everywhere"), (2048, "sent"), (65536, "gathered")]
)
def test_more_tokens_stay_more_at_home(tokens: int, way: str) -> None:
    assert strategy(tokens, MIXTRAL, layout_of("4x4", "ws1d"), *BF16) == way


def test_int8_weights_are_gathered_from_fewer_tokens() -> None:
    layout = layout_of("4x4", "ws1d")
    assert [strategy(32768, MIXTRAL, layout, 2, weight_bytes) for weight_bytes in (2, 1)] == ["sent", "gathered"]


def test_a_token_with_many_experts_is_not_sent_to_each() -> None:
    config = replace(MIXTRAL, ffn=1536, experts=Experts(64, 8))
    layout = layout_of("4x4", "ws1d")
    assert {strategy(tokens, config, layout, *BF16) for tokens in (8, 512, 4096, 1 << 18)} == {"everywhere", "gathered"}


@pytest.mark.parametrize(("mesh", "ffn"), [("1x1", "ws2d"), ("8x1", "ws2d"), ("4x4x4", "wg-xyz")])
def test_without_expert_axes_there_is_nothing_to_choose(mesh: str, ffn: Feedforward) -> None:
    layout = layout_of(mesh, ffn)
    assert len({link_bytes(how, 4096, MIXTRAL, layout, *BF16) for how in STRATEGIES}) == 1
    assert strategy(1 << 20, MIXTRAL, layout, *BF16) == "everywhere"


@given(
    st.sampled_from(["8x1x1", "2x4x1", "4x4x1", "2x2x2", "4x4x4", "1x2x4"]),
    st.sampled_from(["ws1d", "ws2d", "wg-x", "wg-xy"]),
    st.sampled_from([Experts(8, 2), Experts(8, 1), Experts(64, 8), Experts(128, 1)]),
    st.integers(3, 1 << 16),
    st.integers(3, 1 << 16),
)
def test_the_way_never_turns_back(mesh: str, ffn: Feedforward, experts: Experts, tokens: int, more: int) -> None:
    layout, config = layout_of(mesh, ffn), replace(MIXTRAL, experts=experts)
    fewer, all_of_them = (STRATEGIES.index(strategy(n, config, layout, *BF16)) for n in (tokens, tokens + more))
    assert fewer <= all_of_them
