"""The grammar of tables: which tensors follow from it, of what shape, and what each fills."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace

import pytest

from engine.errors import UnsupportedCheckpoint
from engine.families.family import Concatenated, Expected, Fill, Target
from engine.model.params import declare, leaves
from engine.weights.matching import match
from engine.weights.safetensors import StoredTensor
from tests.engine.weights.odd_model import CONFIG, ODD, numbers, stored


def expected() -> dict[str, Expected]:
    return {want.name: want for want in ODD.expected(CONFIG)}


def tensor(name: str, shape: tuple[int, ...]) -> StoredTensor:
    return StoredTensor(name, "a.safetensors", "F32", shape, 0, 0)


def test_shapes_follow_from_the_declarations() -> None:
    shapes = {want.name: want.shape for want in ODD.expected(CONFIG)}
    assert shapes == {name: array.shape for name, array in stored(numbers()).items()}
    assert shapes["h.1.qkv.weight"] == (16, 160)
    assert shapes["h.1.qkv.bias"] == (160,)
    assert shapes["h.0.experts.2.gate"] == (24, 16)
    assert shapes["h.0.up"] == (3, 16, 24)


def test_every_parameter_is_filled_exactly_once() -> None:
    filled: dict[str, list[Fill]] = {}
    for want in ODD.expected(CONFIG):
        for fill in want.fills:
            filled.setdefault(fill.path, []).append(fill)
    assert set(filled) == {path for path, _ in leaves(declare(CONFIG))}
    for path, fills in filled.items():
        by_expert = path.endswith((".gate", ".down"))
        assert [fill.expert for fill in fills] == (list(range(3)) if by_expert else [None])


def test_concatenated_parameters_begin_where_the_one_before_ends() -> None:
    weight, bias = expected()["h.1.qkv.weight"], expected()["h.1.qkv.bias"]
    assert [(fill.path, fill.starts, fill.shape) for fill in weight.fills] == [
        ("layers.1.query", (0, 0), (16, 96)),
        ("layers.1.key", (0, 96), (16, 32)),
        ("layers.1.value", (0, 128), (16, 32)),
    ]
    assert [fill.starts for fill in bias.fills] == [(0,), (96,), (128,)]
    assert weight.fills[0].stored == (("embed",), ("heads", "head_dim"))


def test_names_of_what_is_filled_do_not_depend_on_the_family() -> None:
    assert expected()["h.0.experts.2.down"].path == "layers.0.down.2"
    assert expected()["h.0.qkv.bias"].path == "layers.0.query_bias+layers.0.key_bias+layers.0.value_bias"
    assert len({want.path for want in ODD.expected(CONFIG)}) == len(expected())


@pytest.mark.parametrize("name", ["h.0.mask", "h.12.mask", "a.b"])
def test_recomputed_tensors_are_known_by_pattern(name: str) -> None:
    assert ODD.is_recomputed(name)
    assert not replace(ODD, recomputed=frozenset()).is_recomputed(name)


@pytest.mark.parametrize("name", ["h.0.0.mask", "h.00.mask", "h.x.mask", "aXb", "h.0.masks", ""])
def test_others_are_not_recomputed(name: str) -> None:
    assert not ODD.is_recomputed(name)


@pytest.mark.parametrize("prefix", ["", "model."])
def test_names_match_with_and_without_the_prefix(prefix: str) -> None:
    held = {prefix + name: tensor(prefix + name, want.shape) for name, want in expected().items()}
    matched = match(ODD, CONFIG, held | {prefix + "h.1.mask": tensor(prefix + "h.1.mask", ())})
    assert {source.tensor.name for source in matched.sources.values()} == set(held)
    assert matched.sources["layers.1.down.2"].tensor.name == f"{prefix}h.1.experts.2.down"
    with pytest.raises(UnsupportedCheckpoint, match=f"the weights hold {prefix}extra, for which"):
        match(ODD, CONFIG, held | {prefix + "extra": tensor(prefix + "extra", ())})


def test_a_tensor_with_and_without_the_prefix_is_refused() -> None:
    held = {name: tensor(name, want.shape) for name, want in expected().items()}
    with pytest.raises(UnsupportedCheckpoint, match=r"hold wte with and without model\.; keep one"):
        match(ODD, CONFIG, held | {"model.wte": held["wte"]})


@pytest.mark.parametrize(
    ("name", "shape", "said"),
    [
        (
            "h.0.qkv.weight",
            (160, 16),
            r"shape \[160, 16\].*calls for \[16, 160\] \(embed, heads x head_dim \+ kv_heads",
        ),
        ("h.1.experts.1.gate", (16, 24), r"calls for \[24, 16\] \(ffn, embed\)"),
        ("h.1.up", (3, 24, 16), r"calls for \[3, 16, 24\] \(experts, embed, ffn\)"),
    ],
)
def test_a_wrong_shape_is_named_with_its_axes(name: str, shape: tuple[int, ...], said: str) -> None:
    held = {want.name: tensor(want.name, want.shape) for want in ODD.expected(CONFIG)}
    with pytest.raises(UnsupportedCheckpoint, match=said):
        match(ODD, CONFIG, held | {name: tensor(name, shape)})


def test_a_missing_expert_is_named() -> None:
    held = {want.name: tensor(want.name, want.shape) for want in ODD.expected(CONFIG)}
    del held["h.1.experts.2.gate"]
    with pytest.raises(UnsupportedCheckpoint, match=r"lack h\.1\.experts\.2\.gate; is the checkpoint complete"):
        match(ODD, CONFIG, held)


KEY, VALUE = (Target(f"layers.{{layer}}.{name}", "(kv_heads head_dim) embed") for name in ("key", "value"))


@pytest.mark.parametrize(
    ("entries", "fits"),
    [
        ((Target("layers.{layer}.query", "(heads head_dim) embed"),), True),
        ((Target("layers.{layer}.query", "heads head_dim embed"),), True),
        ((Target("layers.{layer}.query", "(heads head_dim)"),), False),
        ((Target("layers.{layer}.query", "(heads head_dim) embed embed"),), False),
        ((Target("layers.{layer}.query", "(kv_heads head_dim) embed"),), False),
        ((Target("layers.{layer}.query", "(head_dim heads) embed"),), False),  # not neighbours in this order
        ((Target("layers.{layer}.query", "(head_dim embed) heads"),), True),
        ((Target("layers.{layer}.query", "(heads embed) head_dim"),), False),
        ((Concatenated(0, (Target("layers.{layer}.query", "(heads head_dim) embed"), KEY)), VALUE), True),
        ((Concatenated(1, (Target("layers.{layer}.query", "(heads head_dim) embed"), KEY)), VALUE), False),
        ((Concatenated(0, (Target("layers.{layer}.query", "heads head_dim embed"), KEY)), VALUE), False),
    ],
)
def test_an_entry_that_fits_no_parameter_is_our_mistake(entries: tuple[Target | Concatenated, ...], fits: bool) -> None:
    table = {name: entry for name, entry in ODD.table.items() if name != "h.{layer}.qkv.weight"}
    own = {f"h.{{layer}}.{at}": entry for at, entry in enumerate(entries)}
    if len(entries) == 1:
        own |= {"h.{layer}.key": KEY, "h.{layer}.value": VALUE}
    with nullcontext() if fits else pytest.raises(AssertionError):
        assert len(list(replace(ODD, table=table | own).expected(CONFIG))) > 2 * 10


def test_a_parameter_filled_twice_is_our_mistake() -> None:
    twice = replace(ODD, table={**ODD.table, "again": Target("final_norm", "embed")})
    with pytest.raises(AssertionError, match="final_norm is filled by norm and again"):
        list(twice.expected(CONFIG))
