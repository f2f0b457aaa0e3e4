"""Counted collectives against the program's own, read from its trace, and against the closed formulas of the paper."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from fractions import Fraction
from typing import get_args

import pytest

from engine.layout import AttentionSharding, Feedforward, HeldSizes, Layout, Layouts, held_sizes
from engine.mesh import MeshShape
from engine.model.config import ModelConfig
from engine.planning.buckets import MICRO_BATCHES
from engine.planning.collectives import Collective, Kind, Stage, wire_bytes
from engine.planning.named_models import named_model
from engine.planning.paper_volumes import paper_volume, switch_tokens, width
from engine.planning.program import Phase
from engine.planning.volumes import Traffic
from tests.engine.planning.traced import traced_decode, traced_prefill, traced_score

FFN = get_args(Feedforward)
ATTENTION = get_args(AttentionSharding)
CUBE = MeshShape(4, 4, 4)
FIG_3 = (16384, 65536)  # E and F of figure 3


def of_mesh(
    config: ModelConfig, mesh: MeshShape, ffn: Feedforward, attention: AttentionSharding
) -> tuple[Layout, HeldSizes]:
    """The same layout in both phases."""
    layouts = Layouts.of(mesh, (ffn, attention), (ffn, attention))
    return layouts.prefill, held_sizes(config, layouts)


def counted(traffic: Traffic) -> Counter[Stage]:
    return Counter(stage for one in traffic.program() for stage in one.stages for _ in range(one.times))


EVERY_LAYOUT = [(ffn, attention) for ffn in FFN for attention in ATTENTION]
CASES = [("palm-540b", "4x4x4", *layout) for layout in EVERY_LAYOUT] + [
    pytest.param(name, mesh, *EVERY_LAYOUT[number], marks=pytest.mark.slow if number > 4 else ())
    for start, (name, mesh) in enumerate(
        [
            ("llama-3.1-405b", "4x4x4"),
            ("llama-3.1-70b", "4x2x2"),
            ("gpt3-175b", "2x4x1"),
            ("gemma-2-27b", "1x2x4"),
            ("llama-2-7b", "8x1x1"),
        ]
    )
    for number in range(start, len(EVERY_LAYOUT), 5)
]


@pytest.mark.parametrize(("name", "mesh", "ffn", "attention"), CASES)
def test_what_is_counted_is_what_the_program_issues(
    name: str, mesh: str, ffn: Feedforward, attention: AttentionSharding
) -> None:
    config = replace(named_model(name), layers=2, windows=())
    layout, held = of_mesh(config, MeshShape.parse(mesh), ffn, attention)
    int8 = attention == "batch"
    of = {"weight_bytes": 1 if int8 else 2}

    layouts = Layouts(layout, layout)

    prefill = traced_prefill(config, layouts, rows=128, seq=256, int8=int8)
    assert Counter(prefill) == counted(Traffic(config, layout, held, "prefill", 128 * 256, **of))

    decode = traced_decode(config, layouts, slots=128, context=8192, int8=int8)
    assert Counter(decode) == counted(Traffic(config, layout, held, "decode", 128, **of))


@pytest.mark.parametrize(
    ("name", "mesh", "ffn", "attention"),
    [
        ("llama-3.1-70b", "4x4x1", "ws2d", "batch"),
        ("gpt3-175b", "2x2x2", "ws2d", "sequence"),
        ("llama-2-7b", "4x2x1", "ws2d", "heads"),
        ("palm-540b", "2x2x4", "wg-x", "batch"),
    ],
)
def test_few_slots_are_counted_in_the_forms_that_tpus_take_for_them(
    name: str, mesh: str, ffn: Feedforward, attention: AttentionSharding
) -> None:
    """One a chip: the sums of norms go in runs, keys and values everywhere."""
    config = replace(named_model(name), layers=2)
    layout, held = of_mesh(config, MeshShape.parse(mesh), ffn, attention)
    slots = layout.mesh.chips
    decode = traced_decode(config, Layouts(layout, layout), slots=slots, context=8192)
    assert Counter(decode) == counted(Traffic(config, layout, held, "decode", slots))


@pytest.mark.parametrize("layout", EVERY_LAYOUT[::7], ids="-".join)
@pytest.mark.parametrize(("rows", "slots"), [pytest.param(16, 16, marks=pytest.mark.slow), (64, 256)])
def test_a_mixture_is_counted_too(rows: int, slots: int, layout: tuple[Feedforward, AttentionSharding]) -> None:
    """Where no sum is taken inside an expert (x = 1): such sums are in loops of a length that the data decide."""
    config = replace(named_model("mixtral-8x7b"), layers=2)
    one, held = of_mesh(config, MeshShape(1, 2, 8), *layout)
    layouts = Layouts(one, one)
    prefill = traced_prefill(config, layouts, rows, seq=128)
    assert Counter(prefill) == counted(Traffic(config, one, held, "prefill", rows * 128))
    decode = traced_decode(config, layouts, slots, context=2048)
    assert Counter(decode) == counted(Traffic(config, one, held, "decode", slots))


@pytest.mark.parametrize("layout", EVERY_LAYOUT[::4], ids="-".join)
def test_scoring_is_counted_too(layout: tuple[Feedforward, AttentionSharding]) -> None:
    config = replace(named_model("llama-3.1-70b"), layers=2)
    one, held = of_mesh(config, MeshShape(2, 2, 2), *layout)
    traced = traced_score(config, Layouts(one, one), rows=16, seq=128)
    assert Counter(traced) == counted(Traffic(config, one, held, "score", 16 * 128))


@pytest.mark.parametrize(
    ("mesh", "layout"),
    [("2*2x2x2", ("wg-xy", "batch")), ("4*2x2x1", ("ws2d", "heads")), ("8*1x1x1", ("ws2d", "heads"))],
)
def test_a_pipeline_is_counted_too(mesh: str, layout: tuple[Feedforward, AttentionSharding]) -> None:
    config = replace(named_model("llama-3.1-70b"), layers=8)
    one, held = of_mesh(config, MeshShape.parse(mesh), *layout)
    layouts, stages = Layouts(one, one), one.mesh.slices
    pieces = MICRO_BATCHES * stages
    prefill = traced_prefill(config, layouts, rows=256, seq=128)
    assert Counter(prefill) == counted(Traffic(config, one, held, "prefill", 256 * 128, pieces=pieces))
    score = traced_score(config, layouts, rows=256, seq=128)
    assert Counter(score) == counted(Traffic(config, one, held, "score", 256 * 128, pieces=pieces))
    tick = traced_decode(config, layouts, slots=64, context=2048)
    step = counted(Traffic(config, one, held, "decode", 64, pieces=stages))
    assert {stage: times * stages for stage, times in Counter(tick).items()} == step


def test_on_one_chip_nothing_is_sent() -> None:
    config = named_model("llama-2-7b")
    layout, held = of_mesh(config, MeshShape(), "ws2d", "heads")
    assert Traffic(config, layout, held, "decode", 8).program() == []


@pytest.mark.parametrize("ffn", FFN)
def test_a_feed_forward_of_two_matrices_is_the_paper_s_table(ffn: Feedforward) -> None:
    """Section 3.2's table: everything but attention, in a block that is entered and left once."""
    config = replace(named_model("palm-540b"), gated=False)
    layout, held = of_mesh(config, CUBE, ffn, "batch")
    tokens = 4096
    of_ffn = ("entry gather", "up weights", "down weights", "up scatter", "ffn gather", "exit scatter")
    sent = [one for one in Traffic(config, layout, held, "prefill", tokens).layer() if one.what in of_ffn]
    paper = paper_volume(layout, config.embed, 2 * config.ffn)
    assert sum(one.times * one.bytes for one in sent) == paper.bytes(tokens)
    assert sent, "nothing was compared"


@pytest.mark.parametrize("weight_bytes", [1, 2])
@pytest.mark.parametrize("ffn", FFN)
def test_a_parallel_block_is_the_paper_s_with_gate_query_and_output(ffn: Feedforward, weight_bytes: int) -> None:
    config, tokens = named_model("palm-540b"), 8192
    layout, held = of_mesh(config, CUBE, ffn, "heads" if ffn.startswith("ws") else "batch")
    not_in_the_formula = ("norm", "key", "value", "all-to-all")
    sent = [
        one
        for one in Traffic(config, layout, held, "prefill", tokens, weight_bytes=weight_bytes).layer()
        if not any(word in one.what for word in not_in_the_formula)
    ]
    paper = paper_volume(layout, config.embed, width(config, held))
    assert sum(one.times * one.bytes for one in sent) == paper.bytes(tokens, weight_bytes=weight_bytes)


def test_the_paper_s_volumes_as_they_stand_in_the_text() -> None:
    """Section 3.2: 2D weight-stationary and the three weight-gathered layouts, for the shapes of figure 3."""
    embed, ffn = FIG_3
    tokens = 100_000
    volume = {one: paper_volume(Layout(CUBE, one), embed, 2 * ffn).elements(tokens) for one in FFN if one != "ws1d"}
    volume["ws1d"] = paper_volume(Layout(CUBE, "ws1d", rest="1d"), embed, 2 * ffn).elements(tokens)
    assert volume == {
        "ws1d": 2 * tokens * embed,
        "ws2d": 2 * tokens * (embed // 4 + ffn // 16),
        "wg-x": 2 * embed * ffn // 16 + 2 * tokens * embed // 4,
        "wg-xy": 2 * embed * ffn // 4 + 2 * tokens * embed // 16,
        "wg-xyz": 2 * embed * ffn,
    }


@pytest.mark.parametrize(
    ("few", "many", "tokens"),
    [("ws2d", "wg-x", 16_384), ("wg-x", "wg-xy", 65_536), ("wg-xy", "wg-xyz", 786_432)],
)
def test_figure_3_switches_where_the_paper_does(few: Feedforward, many: Feedforward, tokens: int) -> None:
    volumes = [paper_volume(Layout(CUBE, one), FIG_3[0], 2 * FIG_3[1]) for one in (few, many)]
    assert switch_tokens(*volumes) == tokens
    assert switch_tokens(*reversed(volumes)) is None


@pytest.mark.parametrize(("weight_bytes", "tokens"), [(2, 186.6e3), (1, 93.3e3)])
def test_palm_540b_switches_to_gathered_weights(weight_bytes: int, tokens: float) -> None:
    """With 64 padded heads; the paper measures about 180 000 in bf16."""
    config, held = named_model("palm-540b"), HeldSizes(64, 1, 256_000)
    volumes = [paper_volume(Layout(CUBE, one), config.embed, width(config, held)) for one in ("ws2d", "wg-xyz")]
    switch = switch_tokens(*volumes, weight_bytes=weight_bytes)
    assert switch == pytest.approx(tokens, rel=5e-4)


@pytest.mark.parametrize("x", [2, 4, 8])
def test_the_best_mesh_for_2d_is_the_paper_s(x: int) -> None:
    """X = sqrt(n) / 2 where F = 4E (section 3.2.2): 4 of 64 chips."""
    per_token = {
        size: paper_volume(Layout(MeshShape(size, 64 // size)), 16384, 2 * 65536).per_token for size in (2, 4, 8)
    }
    assert (per_token[x] == min(per_token.values())) == (x == 4)


@pytest.mark.parametrize("kind", ["all-gather", "reduce-scatter"])
def test_stages_put_on_the_wire_what_one_collective_would(kind: Kind) -> None:
    whole = 3 * 2**20
    one = Collective("x", kind, (("z",), ("y",), ("x",)), (2, 4, 8), whole)
    assert one.wire_bytes == Fraction(whole * 63, 64)
    stages = one.stages if kind == "reduce-scatter" else one.stages[::-1]
    assert [(stage.axes, stage.bytes) for stage in stages] == [
        (("z",), whole),
        (("y",), whole // 2),
        (("x",), whole // 8),
    ]


def test_an_all_to_all_moves_everything_in_each_stage() -> None:
    one = Collective("x", "all-to-all", (("z",), ("y",)), (4, 4), 1600)
    assert [stage.wire_bytes for stage in one.stages] == [1200, 1200]
    assert wire_bytes([replace(one, times=3)]) == 3 * 2400


def test_an_all_reduce_goes_around_twice() -> None:
    one = Collective("x", "all-reduce", (("x", "y"),), (8,), 800)
    assert [(stage.axes, stage.wire_bytes) for stage in one.stages] == [(("x", "y"), 1400)]


@pytest.mark.parametrize("phase", get_args(Phase))
def test_layers_and_what_surrounds_them_make_the_program(phase: Phase) -> None:
    config = replace(named_model("llama-3.1-70b"), layers=5)
    layout, held = of_mesh(config, CUBE, "ws2d", "batch")
    traffic = Traffic(config, layout, held, phase, 8192)
    parts = wire_bytes(traffic.outside_layers()) + (4 if phase == "prefill" else 5) * wire_bytes(traffic.layer())
    parts += wire_bytes(traffic.last_prefill_layer()) if phase == "prefill" else 0
    assert wire_bytes(traffic.program()) == parts
