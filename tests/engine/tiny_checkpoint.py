"""Random Llama checkpoints written without torch: config.json by hand, model.safetensors by the safetensors library.

Shapes come from the attributes of config.json as transformers reads them, not from our own tables.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

safetensors_numpy = pytest.importorskip(
    "safetensors.numpy", reason="checkpoints are written by the safetensors library"
)

DTYPES = {"float32": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}

LLAMA: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 320,
    "hidden_size": 64,
    "intermediate_size": 160,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10_000.0,
    "rope_scaling": None,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def tiny_config(**attributes: Any) -> dict[str, Any]:
    """A config.json of 2 layers and 64 wide; `attributes` change or add to it."""
    return LLAMA | attributes


def tensor_shapes(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """Every tensor that transformers saves for a Llama with this config."""
    embed, ffn, vocab = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    head_dim = config.get("head_dim") or embed // config["num_attention_heads"]
    queries = config["num_attention_heads"] * head_dim
    keys = (config.get("num_key_value_heads") or config["num_attention_heads"]) * head_dim
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (vocab, embed), "model.norm.weight": (embed,)}
    for layer in range(config["num_hidden_layers"]):
        at = f"model.layers.{layer}"
        products = {
            "self_attn.q_proj": (queries, embed, config.get("attention_bias")),
            "self_attn.k_proj": (keys, embed, config.get("attention_bias")),
            "self_attn.v_proj": (keys, embed, config.get("attention_bias")),
            "self_attn.o_proj": (embed, queries, config.get("attention_bias")),
            "mlp.gate_proj": (ffn, embed, config.get("mlp_bias")),
            "mlp.up_proj": (ffn, embed, config.get("mlp_bias")),
            "mlp.down_proj": (embed, ffn, config.get("mlp_bias")),
        }
        for name, (outputs, inputs, has_bias) in products.items():
            shapes[f"{at}.{name}.weight"] = (outputs, inputs)
            if has_bias:
                shapes[f"{at}.{name}.bias"] = (outputs,)
        shapes[f"{at}.input_layernorm.weight"] = (embed,)
        shapes[f"{at}.post_attention_layernorm.weight"] = (embed,)
    if not config.get("tie_word_embeddings"):
        shapes["lm_head.weight"] = (vocab, embed)
    return shapes


def tiny_tensors(config: dict[str, Any], *, seed: int = 0, dtype: str = "float32") -> dict[str, np.ndarray]:
    """Random values, spread widely enough that logits are not flat; norms lie about one."""
    rng = np.random.default_rng(seed)

    def draw(name: str, shape: tuple[int, ...]) -> np.ndarray:
        values = rng.uniform(0.5, 1.5, shape) if "norm" in name else 0.3 * rng.standard_normal(shape)
        return values.astype(np.float32).astype(DTYPES[dtype])

    return {name: draw(name, shape) for name, shape in tensor_shapes(config).items()}


def save_tensors(path: str | Path, tensors: dict[str, np.ndarray]) -> None:
    """One safetensors file, written by the library."""
    safetensors_numpy.save_file(tensors, str(path), metadata={"format": "pt"})


def write_tiny_checkpoint(
    directory: str | Path, *, seed: int = 0, dtype: str = "float32", **attributes: Any
) -> dict[str, np.ndarray]:
    """Writes config.json and model.safetensors; returns the tensors. `attributes` are those of config.json."""
    config = tiny_config(torch_dtype=dtype, **attributes)
    tensors = tiny_tensors(config, seed=seed, dtype=dtype)
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(config, indent=2))
    save_tensors(directory / "model.safetensors", tensors)
    return tensors
