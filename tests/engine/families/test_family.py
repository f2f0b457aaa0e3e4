"""The grammar of tables: which tensors follow from it, of what shape, and what each fills."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace

import pytest

from engine.errors import UnsupportedCheckpoint
from engine.families.family import Concatenated, Expected, Family, Fill, Target
from engine.model.config import Experts, ModelConfig
from engine.model.params import declare, leaves
from engine.weights.matching import match
from engine.weights.safetensors import StoredTensor

CONFIG = ModelConfig(
    layers=2,
    embed=12,
    ffn=20,
    heads=4,
    kv_heads=2,
    head_dim=3,
    vocab=30,
    context_tokens=16,
    norm_epsilon=1e-5,
    rotary=None,
    tied_head=True,
    attention_bias=True,
    experts=Experts(count=3, per_token=2),
)
ODD = Family(
    architecture="OddForCausalLM",
    model_type="odd",
    config_from_hf=lambda hf: CONFIG,
    table={
        "wte": Target("embedding", "vocab embed"),
        "h.{layer}.qkv.weight": Concatenated(
            1,
            (
                Target("layers.{layer}.query", "embed (heads head_dim)"),
                Target("layers.{layer}.key", "embed (kv_heads head_dim)"),
                Target("layers.{layer}.value", "embed (kv_heads head_dim)"),
            ),
        ),
        "h.{layer}.qkv.bias": Concatenated(
            0,
            (
                Target("layers.{layer}.query_bias", "(heads head_dim)"),
                Target("layers.{layer}.key_bias", "(kv_heads head_dim)"),
                Target("layers.{layer}.value_bias", "(kv_heads head_dim)"),
            ),
        ),
        "h.{layer}.out.weight": Target("layers.{layer}.attention_out", "(heads head_dim) embed"),
        "h.{layer}.out.bias": Target("layers.{layer}.attention_out_bias", "embed"),
        "h.{layer}.norm": Target("layers.{layer}.attention_norm", "embed"),
        "h.{layer}.ffn_norm": Target("layers.{layer}.ffn_norm", "embed"),
        "h.{layer}.router": Target("layers.{layer}.router", "embed experts"),
        "h.{layer}.experts.{expert}.gate": Target("layers.{layer}.gate", "ffn embed"),
        "h.{layer}.experts.{expert}.down": Target("layers.{layer}.down", "ffn embed"),
        "h.{layer}.up": Target("layers.{layer}.up", "experts embed ffn"),
        "norm": Target("final_norm", "embed"),
        "unembed": Target("head", "vocab embed"),
    },
    recomputed=frozenset({"h.{layer}.mask", "a.b"}),
    optional_prefix="model.",
)


def expected() -> dict[str, Expected]:
    return {want.name: want for want in ODD.expected(CONFIG)}


def tensor(name: str, shape: tuple[int, ...]) -> StoredTensor:
    return StoredTensor(name, "a.safetensors", "F32", shape, 0, 0)


def test_shapes_follow_from_the_declarations() -> None:
    assert {name.replace("h.1.", ""): want.shape for name, want in expected().items() if "h.0" not in name} == {
        "wte": (30, 12),
        "qkv.weight": (12, 24),
        "qkv.bias": (24,),
        "out.weight": (12, 12),
        "out.bias": (12,),
        "norm": (12,),
        "ffn_norm": (12,),
        "router": (12, 3),
        **{f"experts.{expert}.{name}": (20, 12) for expert in range(3) for name in ("gate", "down")},
        "up": (3, 12, 20),
    } | {"norm": (12,)}


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
        ("layers.1.query", (0, 0), (12, 12)),
        ("layers.1.key", (0, 12), (12, 6)),
        ("layers.1.value", (0, 18), (12, 6)),
    ]
    assert [fill.starts for fill in bias.fills] == [(0,), (12,), (18,)]
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
    stored = {prefix + name: tensor(prefix + name, want.shape) for name, want in expected().items()}
    matched = match(ODD, CONFIG, stored | {prefix + "h.1.mask": tensor(prefix + "h.1.mask", ())})
    assert {source.tensor.name for source in matched.sources.values()} == set(stored)
    assert matched.sources["layers.1.down.2"].tensor.name == f"{prefix}h.1.experts.2.down"
    with pytest.raises(UnsupportedCheckpoint, match=f"the weights hold {prefix}extra, for which"):
        match(ODD, CONFIG, stored | {prefix + "extra": tensor(prefix + "extra", ())})


def test_a_tensor_with_and_without_the_prefix_is_refused() -> None:
    stored = {name: tensor(name, want.shape) for name, want in expected().items()}
    with pytest.raises(UnsupportedCheckpoint, match=r"hold wte with and without model\.; keep one"):
        match(ODD, CONFIG, stored | {"model.wte": stored["wte"]})


@pytest.mark.parametrize(
    ("name", "shape", "said"),
    [
        ("h.0.qkv.weight", (24, 12), r"shape \[24, 12\].*calls for \[12, 24\] \(embed, heads x head_dim \+ kv_heads x"),
        ("h.1.experts.1.gate", (12, 20), r"calls for \[20, 12\] \(ffn, embed\)"),
        ("h.1.up", (3, 20, 12), r"calls for \[3, 12, 20\] \(experts, embed, ffn\)"),
    ],
)
def test_a_wrong_shape_is_named_with_its_axes(name: str, shape: tuple[int, ...], said: str) -> None:
    stored = {want.name: tensor(want.name, want.shape) for want in ODD.expected(CONFIG)}
    with pytest.raises(UnsupportedCheckpoint, match=said):
        match(ODD, CONFIG, stored | {name: tensor(name, shape)})


def test_a_missing_expert_is_named() -> None:
    stored = {want.name: tensor(want.name, want.shape) for want in ODD.expected(CONFIG)}
    del stored["h.1.experts.2.gate"]
    with pytest.raises(UnsupportedCheckpoint, match=r"lack h\.1\.experts\.2\.gate; is the checkpoint complete"):
        match(ODD, CONFIG, stored)


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
