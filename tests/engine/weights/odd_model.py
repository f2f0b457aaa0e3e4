"""A model stored in every way that a table can say, with the tensors written out by hand.

Queries, keys and values are one transposed tensor, the other matrices are stored in turn as we keep them, transposed,
one an expert, and all experts in one.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engine.families.family import Concatenated, Family, Target
from engine.layout import HeldSizes
from engine.model.config import Experts, ModelConfig
from engine.model.params import declare, leaves
from tests.engine.tiny_checkpoint import DTYPES, save_tensors

CONFIG = ModelConfig(
    layers=2,
    embed=16,
    ffn=24,
    heads=12,
    kv_heads=4,
    head_dim=8,
    vocab=45,
    context_tokens=16,
    norm_epsilon=1e-5,
    rotary=None,
    tied_head=False,
    attention_bias=True,
    experts=Experts(count=3, per_token=2),
)
EXPERTS = 3
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
        "h.{layer}.out.weight": Target("layers.{layer}.attention_out", "embed (heads head_dim)"),
        "h.{layer}.out.bias": Target("layers.{layer}.attention_out_bias", "embed"),
        "h.{layer}.norm": Target("layers.{layer}.attention_norm", "embed"),
        "h.{layer}.ffn_norm": Target("layers.{layer}.ffn_norm", "embed"),
        "h.{layer}.router": Target("layers.{layer}.router", "embed experts"),
        "h.{layer}.experts.{expert}.gate": Target("layers.{layer}.gate", "ffn embed"),
        "h.{layer}.experts.{expert}.down": Target("layers.{layer}.down", "ffn embed"),
        "h.{layer}.up": Target("layers.{layer}.up", "experts embed ffn"),
        "norm": Target("final_norm", "embed"),
        "unembed": Target("head", "embed vocab"),
    },
    recomputed=frozenset({"h.{layer}.mask", "a.b"}),
    optional_prefix="model.",
)


def numbers(seed: int = 0) -> dict[str, np.ndarray]:
    """Every parameter, none of its numbers zero."""
    rng = np.random.default_rng(seed)
    return {
        path: np.where(drawn := rng.standard_normal(declared.shape), drawn, 1).astype(np.float32)
        for path, declared in leaves(declare(CONFIG))
    }


def stored(params: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The tensors of a checkpoint."""
    tensors = {"wte": params["embedding"], "norm": params["final_norm"], "unembed": params["head"].T}
    for layer in range(CONFIG.layers):
        own = {path.rpartition(".")[2]: array for path, array in params.items() if path.startswith(f"layers.{layer}.")}
        qkv = [own[name].reshape(-1, CONFIG.embed) for name in ("query", "key", "value")]
        tensors |= {
            f"h.{layer}.{name}": array
            for name, array in {
                "qkv.weight": np.concatenate(qkv).T,
                "qkv.bias": np.concatenate([own[f"{name}_bias"].reshape(-1) for name in ("query", "key", "value")]),
                "out.weight": own["attention_out"].reshape(CONFIG.embed, -1),
                "out.bias": own["attention_out_bias"],
                "norm": own["attention_norm"],
                "ffn_norm": own["ffn_norm"],
                "router": own["router"].T,
                "up": own["up"].transpose(0, 2, 1),
                **{f"experts.{expert}.gate": own["gate"][expert] for expert in range(EXPERTS)},
                **{f"experts.{expert}.down": own["down"][expert].T for expert in range(EXPERTS)},
            }.items()
        }
    return tensors


def padded(params: Mapping[str, np.ndarray], held: HeldSizes) -> dict[str, np.ndarray]:
    """Every parameter as it is held: query heads beside their key and value head, the rest followed by zeros.

    Of several stages, what they have in the same place stands in one array.
    """
    if held.stages > 1:
        whole, each = padded(params, replace(held, stages=1)), CONFIG.layers // held.stages
        return {
            path: whole[path]
            if "stages" not in declared.axes
            else np.stack([whole[_of_layer(path, stage * each)] for stage in range(held.stages)])
            for path, declared in leaves(declare(CONFIG, held))
        }
    result = {}
    group, group_held = CONFIG.heads // CONFIG.kv_heads, held.heads // held.kv_heads
    for path, declared in leaves(declare(CONFIG, held)):
        array = np.zeros(declared.shape, params[path].dtype)
        if "heads" in declared.axes:
            at = declared.axes.index("heads")
            for head in range(CONFIG.heads):
                place = head // group * group_held + head % group
                np.moveaxis(array, at, 0)[place] = np.moveaxis(params[path], at, 0)[head]
        else:
            array[tuple(slice(size) for size in params[path].shape)] = params[path]
        result[path] = array
    return result


def _of_layer(path: str, further: int) -> str:
    """The same of the layer that is so much further on."""
    layers, number, name = path.split(".")
    return f"{layers}.{int(number) + further}.{name}"


def write(directory: Path, monkeypatch: pytest.MonkeyPatch, dtype: str = "float32") -> dict[str, np.ndarray]:
    """A checkpoint in two files, of a family that is known from now on; returns its parameters."""
    monkeypatch.setattr("engine.families.FAMILIES", (ODD,))
    params = {path: array.astype(DTYPES[dtype]) for path, array in numbers().items()}
    tensors = {name: np.ascontiguousarray(array) for name, array in stored(params).items()}
    names = sorted(tensors)
    weight_map = {name: f"{at % 2}.safetensors" for at, name in enumerate(names)}
    directory.mkdir(exist_ok=True)
    for file in set(weight_map.values()):
        save_tensors(directory / file, {name: tensors[name] for name in names if weight_map[name] == file})
    config: dict[str, Any] = {"architectures": [ODD.architecture], "model_type": ODD.model_type}
    (directory / "config.json").write_text(json.dumps(config))
    (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return {path: array.astype(np.float32) for path, array in params.items()}
