"""A checkpoint's identity: what decides its answers, and nothing else.

Two checkpoints with the same configuration, end tokens and tensors have the same fingerprint wherever they lie, however
their tensors are spread over files, and whatever else is in config.json.
"""

from __future__ import annotations

import hashlib
import json
from contextlib import ExitStack
from dataclasses import MISSING, fields, is_dataclass
from typing import Any

import numpy as np

from engine.families import CheckpointConfig, Open
from engine.families.documents import File
from engine.weights.matching import Matched
from engine.weights.safetensors import StoredTensor, read_pieces, read_sample

WHOLE_BYTES = 256 << 20
SAMPLE_BYTES = 4 << 10


def fingerprint(config: CheckpointConfig, matched: Matched, open: Open) -> str:
    """sha256 over the configuration and the weights, in hexadecimal.

    Weights of up to 256 MiB are hashed whole. Of larger ones the dtype and shape of every tensor are, and the 4 KiB in
    its middle: another training run or another step of it changes those, and so does any conversion, but an edit of
    single numbers elsewhere (one row of an embedding, say) goes unnoticed.
    """
    described = {"family": config.family.architecture, "model": _described(config.model), "eos": config.eos_token_ids}
    digest = hashlib.sha256(json.dumps(described, sort_keys=True).encode())
    whole = matched.size_bytes <= WHOLE_BYTES
    digest.update(b"whole" if whole else b"sampled")
    with ExitStack() as stack:
        tensors = {filled: source.tensor for filled, source in matched.sources.items()}
        files = {path: stack.enter_context(open(path)) for path in {tensor.file for tensor in tensors.values()}}
        for path, tensor in sorted(tensors.items()):
            digest.update(json.dumps([path, tensor.dtype, tensor.shape]).encode())
            _update(digest, files[tensor.file], tensor, whole)
    return digest.hexdigest()


def _update(digest: Any, file: File, tensor: StoredTensor, whole: bool) -> None:
    if not whole:
        digest.update(read_sample(file, tensor, SAMPLE_BYTES))
        return
    for piece in read_pieces(file, tensor):
        digest.update(piece.view(np.uint8))


def _described(value: Any) -> Any:
    """A configuration without the fields at their default, so that one added later leaves old fingerprints alone."""
    if not is_dataclass(value):
        return value
    described = {
        field.name: _described(getattr(value, field.name))
        for field in fields(value)
        if field.default is MISSING or getattr(value, field.name) != field.default
    }
    return {type(value).__name__: described}
