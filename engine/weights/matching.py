"""Matches the tensors a checkpoint holds with the parameters its config declares: each filled once, none left over."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from engine.errors import UnsupportedCheckpoint
from engine.families.family import Expected, Family
from engine.model.config import ModelConfig
from engine.weights.safetensors import NUMBERS, StoredTensor


@dataclass(frozen=True)
class Matched:
    """Where every parameter's numbers lie."""

    sources: dict[str, StoredTensor]
    """By the parameter's path."""
    head_copy: StoredTensor | None
    """A tied checkpoint's second copy of its embedding, which must be equal to it."""

    @property
    def size_bytes(self) -> int:
        return sum(tensor.size_bytes for tensor in self.sources.values())


def match(family: Family, config: ModelConfig, stored: Mapping[str, StoredTensor]) -> Matched:
    """Checks names, shapes and dtypes of everything stored; reads no tensor."""
    expected = {want.name: want for want in family.expected(config)}
    missing = [name for name in expected if name not in stored]
    if missing:
        advice = "is the checkpoint complete, and does config.json belong to it?"
        if missing == ["lm_head.weight"]:
            advice = "if its output head is the embedding table, say tie_word_embeddings: true in config.json"
        raise UnsupportedCheckpoint(f"the weights lack {_some(missing)}; {advice}")

    sources = {want.path: _checked(want, stored[name]) for name, want in expected.items()}
    head_name, head_copy = family.tied_head(config), None
    if head_name and head_name in stored:
        embedding = next(want for want in expected.values() if want.path == "embedding")
        head_copy = _checked(embedding, stored[head_name])
    left_over = [
        name for name in stored if name not in expected and name != head_name and not family.is_recomputed(name)
    ]
    if left_over:
        raise UnsupportedCheckpoint(
            f"the weights hold {_some(left_over)}, for which a {family.architecture} with this config.json has no place"
        )
    return Matched(sources, head_copy)


def _checked(want: Expected, tensor: StoredTensor) -> StoredTensor:
    if tensor.shape != want.shape:
        raise UnsupportedCheckpoint(
            f"{tensor.name} in {tensor.file} has shape {list(tensor.shape)}; config.json calls for {list(want.shape)} "
            f"({', '.join(want.parameter.axes)})"
        )
    if tensor.dtype not in NUMBERS:
        raise UnsupportedCheckpoint(
            f"{tensor.name} in {tensor.file} is stored as {tensor.dtype}; weights are read from {', '.join(NUMBERS)}"
        )
    return tensor


def _some(names: list[str]) -> str:
    listed = ", ".join(name[:120] for name in names[:3])
    return listed if len(names) <= 3 else f"{listed} and {len(names) - 3} more"
