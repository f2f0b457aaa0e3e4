"""What can be known of a checkpoint without a device: from its JSON and the headers of its weights.

Whoever plans a job calls this before anything is started, on a machine that may have no accelerator and need not load
the model; nothing here imports jax.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from engine.families import Open, open_local, read_config
from engine.layout import Layouts, check_divides
from engine.model.params import count
from engine.weights.fingerprint import fingerprint
from engine.weights.matching import match
from engine.weights.tensor_files import stored_tensors


@dataclass(frozen=True)
class CheckpointFacts:
    fingerprint: str
    """What decides the checkpoint's answers, as one hash; see `engine.weights.fingerprint` for what it can notice."""
    architecture: str
    parameters: int
    weight_bytes: int
    """As stored."""
    context_tokens: int
    vocab_size: int
    dtype: str
    """What the checkpoint was meant to be held in: float32, float16 or bfloat16."""
    eos_token_ids: tuple[int, ...]


def preflight(
    checkpoint: str,
    open: Open = open_local,
    *,
    mesh: str | None = None,
    prefill: Sequence[str | None] | None = None,
    decode: Sequence[str | None] | None = None,
) -> CheckpointFacts:
    """Checks that a checkpoint is whole and is computed here; UnsupportedCheckpoint says what is wrong with it.

    NoFeasiblePlan, if it does not divide over the mesh in these layouts (see `Engine.load`).

    Every file, name, shape and dtype is checked. Of the weights' bytes only those the fingerprint takes are read, so
    numbers that are NaN are found when they are loaded.
    """
    config = read_config(checkpoint, open)
    check_divides(config.model, Layouts.asked(config.model.kv_heads, mesh, prefill, decode))
    matched = match(config.family, config.model, stored_tensors(checkpoint, open))
    return CheckpointFacts(
        fingerprint=fingerprint(config, matched, open),
        architecture=config.family.architecture,
        parameters=count(config.model),
        weight_bytes=matched.size_bytes,
        context_tokens=config.model.context_tokens,
        vocab_size=config.model.vocab,
        dtype=config.dtype,
        eos_token_ids=config.eos_token_ids,
    )
