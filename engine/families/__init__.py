"""WHICH published models fit: from a checkpoint's config.json to a ModelConfig and a table of tensor names.

Only JSON is read here: config.json, and generation_config.json for the tokens that end a sequence.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from engine.errors import UnsupportedCheckpoint
from engine.families.attributes import Attributes, shown
from engine.families.documents import Open, exists, join, open_local, read_document
from engine.families.falcon import FALCON
from engine.families.family import Family
from engine.families.gemma2 import GEMMA2
from engine.families.gpt2 import GPT2
from engine.families.llama import LLAMA
from engine.families.mistral import MISTRAL
from engine.families.mixtral import MIXTRAL
from engine.model.config import ModelConfig

__all__ = ["FAMILIES", "CheckpointConfig", "Open", "family_of", "open_local", "read_config"]

FAMILIES = (LLAMA, MISTRAL, MIXTRAL, GEMMA2, FALCON, GPT2)

_STORED = ("float32", "float16", "bfloat16")


@dataclass(frozen=True)
class CheckpointConfig:
    """What a checkpoint's JSON says about its model."""

    family: Family
    model: ModelConfig
    dtype: str
    """What config.json says the weights are to be held in; where it does not say, "float32", which loses nothing."""
    eos_token_ids: tuple[int, ...]
    """Tokens that end a sequence: of generation_config.json, else of config.json."""


def read_config(checkpoint: str, open: Open = open_local) -> CheckpointConfig:
    """Reads and checks a checkpoint's JSON; UnsupportedCheckpoint says what is missing or not computed."""
    hf = read_document(checkpoint, "config.json", open)
    if hf is None:
        if exists(checkpoint, "model.safetensors", open) or exists(checkpoint, "model.safetensors.index.json", open):
            raise UnsupportedCheckpoint(
                f"{checkpoint} has weights but no config.json; copy it from where they came from"
            )
        raise UnsupportedCheckpoint(
            f"there is no checkpoint at {checkpoint}: {join(checkpoint, 'config.json')} does not exist; give the "
            "directory of a Hugging Face checkpoint (a model's name alone is not looked up: download it first)"
        )
    family = family_of(hf)
    model = family.config_from_hf(hf)
    generation = read_document(checkpoint, "generation_config.json", open) or {}
    return CheckpointConfig(family, model, _dtype(hf), _eos_token_ids(hf, generation, model.vocab))


def family_of(hf: Mapping[str, Any]) -> Family:
    """The family named by `architectures`, or by `model_type` where a config does not say the architecture."""
    architectures, model_type = hf.get("architectures"), hf.get("model_type")
    if architectures is None and model_type is None:
        raise UnsupportedCheckpoint(
            "config.json names neither architectures nor model_type: it is no Hugging Face model's config"
        )
    for family in FAMILIES:
        if architectures in (None, [family.architecture]) and model_type in (None, family.model_type):
            return family
    computed = ", ".join(f"{family.architecture} (model_type {family.model_type})" for family in FAMILIES)
    raise UnsupportedCheckpoint(
        f"config.json: architectures={shown(architectures)} with model_type={shown(model_type)} is not computed here; "
        f"only {computed} is"
    )


def _dtype(hf: Mapping[str, Any]) -> str:
    attributes = Attributes(hf)
    new, old = (attributes.text(name, None) for name in ("dtype", "torch_dtype"))
    stated = (new or old or "float32").removeprefix("torch.")
    if stated not in _STORED:
        raise attributes.wrong("dtype" if new else "torch_dtype", stated, f"is not one of {', '.join(_STORED)}")
    return stated


def _eos_token_ids(hf: Mapping[str, Any], generation: Mapping[str, Any], vocab: int) -> tuple[int, ...]:
    for source, where in ((generation, "generation_config.json"), (hf, "config.json")):
        stated = source.get("eos_token_id")
        if stated is None:
            continue
        ids = stated if isinstance(stated, list) else [stated]
        if not all(type(token) is int and 0 <= token < vocab for token in ids):
            raise UnsupportedCheckpoint(
                f"{where}: eos_token_id={shown(stated)} must be one or several token ids, each below vocab_size={vocab}"
            )
        return tuple(dict.fromkeys(ids))
    return ()
