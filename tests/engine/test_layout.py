"""Layouts as values: what is split over what, what is padded, what is refused."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from typing import get_args

import pytest

from engine.errors import NoFeasiblePlan
from engine.layout import AttentionSharding, Feedforward, Layout, Layouts, check_divides, held_sizes
from engine.mesh import MeshShape
from tests.engine.tiny_models import LLAMA, MODELS

MESHES = [MeshShape.parse(text) for text in ("8x1x1", "2x4x1", "4x2x1", "2x2x2", "1x2x4", "4x4x4")]
FFN, ATTENTION = get_args(Feedforward), get_args(AttentionSharding)
EVERY_LAYOUT = list(product(MESHES, FFN, ATTENTION))


def layouts(mesh: MeshShape, ffn: str, attention: str) -> Layout:
    return Layouts.of(mesh, (ffn, attention), (ffn, attention)).prefill


@pytest.mark.parametrize(("mesh", "ffn", "attention"), EVERY_LAYOUT)
def test_every_axis_has_one_place_in_each_role(mesh: MeshShape, ffn: str, attention: str) -> None:
    layout = layouts(mesh, ffn, attention)
    everything = set(layout.everything)
    assert everything == {axis for axis in "xyz" if getattr(mesh, axis) > 1}
    # Weights, at rest and in use; the residual stream; attention: a chip is never idle and never holds a copy.
    assert sorted(layout.rest_embed + layout.rest_ffn) == sorted(everything)
    assert sorted(layout.used_embed + layout.used_ffn + layout.gathered) == sorted(everything)
    assert sorted(layout.tokens + layout.used_embed) == sorted(everything)
    assert set(layout.tokens) == set(layout.gathered) | set(layout.entry)
    attended = layout.attention_rows + layout.attention_sequence + layout.attention_heads
    assert sorted(attended) == sorted(everything)


def test_the_layouts_of_the_paper() -> None:
    """Section 3.2 and 3.3, on 4 x 4 x 4."""
    mesh = MeshShape(4, 4, 4)
    ws2d, wg_x, wg_xy, wg_xyz = (layouts(mesh, ffn, "batch") for ffn in ("ws2d", "wg-x", "wg-xy", "wg-xyz"))
    assert (ws2d.used_embed, ws2d.used_ffn, ws2d.entry) == (("x",), ("z", "y"), ("y", "z"))
    assert (wg_x.used_embed, wg_x.used_ffn, wg_x.entry) == ((), ("z", "y"), ("y", "z"))
    assert (wg_xy.used_embed, wg_xy.used_ffn, wg_xy.entry) == ((), ("z",), ("z",))
    assert (wg_xyz.used_embed, wg_xyz.used_ffn, wg_xyz.entry) == ((), (), ())
    assert all(layout.attention_rows == ("x", "y", "z") for layout in (ws2d, wg_x, wg_xy, wg_xyz))
    ws1d = layouts(mesh, "ws1d", "heads")
    assert (ws1d.used_embed, ws1d.used_ffn, ws1d.entry) == ((), ("z", "y", "x"), ("x", "y", "z"))
    assert ws1d.attention_heads == ("z", "y", "x")


def test_heads_are_padded_as_the_paper_pads_palm() -> None:
    palm = replace(LLAMA, heads=48, kv_heads=1, head_dim=256)
    mesh = MeshShape(4, 4, 4)
    over_heads = Layouts.of(mesh, ("ws2d", "heads"), ("ws2d", "heads"))
    over_batch = Layouts.of(mesh, ("wg-xyz", "batch"), ("ws2d", "batch"))
    assert held_sizes(palm, over_heads).heads == 64
    assert held_sizes(palm, over_batch).heads == 48


@pytest.mark.parametrize(("heads", "kv_heads"), [(12, 12), (12, 4), (6, 1), (40, 8), (40, 10), (14, 2), (9, 3)])
@pytest.mark.parametrize(("mesh", "ffn", "attention"), EVERY_LAYOUT)
def test_held_heads_divide_over_every_chip_and_keep_their_group(
    heads: int, kv_heads: int, mesh: MeshShape, ffn: str, attention: str
) -> None:
    both = Layouts.of(mesh, (ffn, attention), (ffn, attention))
    held = held_sizes(replace(LLAMA, heads=heads, kv_heads=kv_heads), both)
    assert held.heads >= heads
    assert held.kv_heads >= kv_heads
    assert held.heads % held.kv_heads == 0
    assert held.heads // held.kv_heads >= heads // kv_heads
    over_heads = mesh.size(both.prefill.attention_heads)
    assert held.heads % mesh.size(both.prefill.rest_ffn) == 0
    assert held.heads % over_heads == 0
    own, group = held.heads // over_heads, held.heads // held.kv_heads
    assert own % group == 0 or group % own == 0, "a chip's query heads would begin in the middle of a group"


def test_a_mesh_that_does_not_divide_names_the_dimension_and_the_nearest_that_does() -> None:
    for sizes, named in (({"embed": 66}, "embed=66"), ({"ffn": 90}, "ffn=90"), ({"head_dim": 2}, "head_dim=2")):
        config = replace(LLAMA, kv_heads=1, **sizes)
        with pytest.raises(NoFeasiblePlan, match=rf"{named}.*nearest mesh that does is \d+x\d+x\d+") as refused:
            check_divides(config, Layouts.of(MeshShape(4, 4, 4), ("ws2d", "batch"), ("ws2d", "batch")))
        nearest = MeshShape.parse(str(refused.value).split()[-1])
        check_divides(config, Layouts.of(nearest, ("ws2d", "batch"), ("ws2d", "batch")))


@pytest.mark.parametrize("text", ["", "0x2", "2x", "2x2x2x2", "-1", "2 x 2", "a", "1" * 40, "0*2x2", "2*", "2*2*2"])
def test_what_is_no_mesh(text: str) -> None:
    with pytest.raises(NoFeasiblePlan, match="XxYxZ"):
        MeshShape.parse(text)


def test_slices_are_an_axis_of_their_own() -> None:
    mesh = MeshShape.parse("3*2x4")
    assert (str(mesh), mesh.chips, mesh.slice_chips, mesh.size(("slice", "y"))) == ("3*2x4x1", 24, 8, 12)
    layout = layouts(mesh, "ws2d", "heads")
    assert (layout.everything, layout.over_slices) == (("x", "y"), ("slice",))
    assert layouts(MeshShape(2, 4), "ws2d", "heads").over_slices == ()
    # Of a stage's parameters each slice has its own; of the others each has all.
    assert layout.at_rest(("stages", "embed"), 4) == (("slice",), ())
    assert layout.at_rest(("stages", "ffn", "embed"), 4) == (("slice",), ("y",), ("x",))
    assert layout.at_rest(("vocab", "embed"), 4) == (("y",), ("x",))


def test_weights_rest_in_one_form_for_both_phases() -> None:
    with pytest.raises(NoFeasiblePlan, match="ws1d and the other ws2d"):
        Layouts.of(MeshShape(2, 2, 2), ("ws1d", "heads"), ("ws2d", "batch"))
    one_row = Layouts.of(MeshShape(1, 4, 2), ("ws1d", "heads"), ("ws2d", "batch"))  # X = 1: they are the same
    assert one_row.prefill.rest_ffn == one_row.decode.rest_ffn == ("z", "y")


@pytest.mark.parametrize(
    ("asked", "possible"),
    [(("wg", "heads"), "ws1d, ws2d, wg-x, wg-xy, wg-xyz"), (("ws2d", "head"), "heads, batch, sequence")],
)
def test_names_that_are_not_layouts(asked: tuple[str, str], possible: str) -> None:
    with pytest.raises(NoFeasiblePlan, match=possible):
        Layouts.asked(8, "2x2x2", asked)


def test_layouts_that_are_not_named_are_the_usual_ones() -> None:
    grouped = Layouts.asked(8, "2x4x4")
    assert (grouped.prefill.ffn, grouped.prefill.attention) == ("ws2d", "heads")
    assert (grouped.decode.ffn, grouped.decode.attention) == ("ws2d", "batch")
    assert Layouts.asked(8, "2x2x2").decode.attention == "heads"
    assert Layouts.asked(8, "2x2x2", ("wg-xyz", None)).prefill.attention == "batch"
    assert Layouts.asked(8, "2x2x2", None, ("ws1d", None)).prefill.ffn == "ws1d"
    assert Layouts.asked(8, None).mesh.chips == 1


def test_every_family_divides_over_eight_chips() -> None:
    for config in MODELS.values():
        for mesh in MESHES[:5]:
            check_divides(config, Layouts.of(mesh, ("ws2d", "heads"), ("ws2d", "batch")))
