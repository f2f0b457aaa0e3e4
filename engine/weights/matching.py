"""Matches the tensors a checkpoint holds with the parameters its config declares: each filled once, none left over."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from engine.errors import UnsupportedCheckpoint
from engine.families.family import Expected, Family, Fill
from engine.model.config import ModelConfig
from engine.weights.safetensors import NUMBERS, StoredTensor


@dataclass(frozen=True)
class Source:
    """A stored tensor and what it fills."""

    tensor: StoredTensor
    fills: tuple[Fill, ...]


@dataclass(frozen=True)
class Matched:
    """Where every parameter's numbers lie."""

    sources: dict[str, Source]
    """By what they fill, see `Expected.path`."""
    head_copy: StoredTensor | None
    """A tied checkpoint's second copy of its embedding, which must be equal to it."""

    @property
    def size_bytes(self) -> int:
        return sum(source.tensor.size_bytes for source in self.sources.values())


def match(family: Family, config: ModelConfig, stored: Mapping[str, StoredTensor]) -> Matched:
    """Checks names, shapes and dtypes of everything stored; reads no tensor."""
    stored = _without_prefix(family.optional_prefix, stored)
    expected = {want.name: want for want in family.expected(config)}
    missing = [name for name in expected if name not in stored]
    head_name = family.tied_head(config)
    if missing:
        advice = "is the checkpoint complete, and does config.json belong to it?"
        if [want.path for want in expected.values() if want.name in missing] == ["head"]:
            advice = "if its output head is the embedding table, say tie_word_embeddings: true in config.json"
        raise UnsupportedCheckpoint(f"the weights lack {_some(missing)}; {advice}")

    sources = {want.path: Source(_checked(want, stored[name]), want.fills) for name, want in expected.items()}
    head_copy = None
    if head_name and head_name in stored:
        embedding = next(want for want in expected.values() if want.path == "embedding")
        head_copy = _checked(embedding, stored[head_name])
    left_over = [
        tensor.name
        for name, tensor in stored.items()
        if name not in expected and name != head_name and not family.is_recomputed(name)
    ]
    if left_over:
        raise UnsupportedCheckpoint(
            f"the weights hold {_some(left_over)}, for which a {family.architecture} with this config.json has no place"
        )
    return Matched(sources, head_copy)


def _without_prefix(prefix: str, stored: Mapping[str, StoredTensor]) -> dict[str, StoredTensor]:
    """By names as the family's table has them; every tensor keeps its own."""
    plain: dict[str, StoredTensor] = {}
    for name, tensor in stored.items():
        if (short := name.removeprefix(prefix)) in plain:
            raise UnsupportedCheckpoint(f"the weights hold {short[:120]} with and without {prefix}; keep one")
        plain[short] = tensor
    return plain


def _checked(want: Expected, tensor: StoredTensor) -> StoredTensor:
    if tensor.shape != want.shape:
        raise UnsupportedCheckpoint(
            f"{tensor.name} in {tensor.file} has shape {list(tensor.shape)}; config.json calls for {list(want.shape)} "
            f"({want.axes})"
        )
    if tensor.dtype not in NUMBERS:
        raise UnsupportedCheckpoint(
            f"{tensor.name} in {tensor.file} is stored as {tensor.dtype}; weights are read from {', '.join(NUMBERS)}"
        )
    return tensor


def _some(names: list[str]) -> str:
    listed = ", ".join(name[:120] for name in names[:3])
    return listed if len(names) <= 3 else f"{listed} and {len(names) - 3} more"
