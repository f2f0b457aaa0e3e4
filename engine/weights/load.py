"""Fills every parameter from its tensor, piece by piece, straight into an array of the dtype it is to have.

Tensors are read once, in the order they lie in their files. Beyond the model itself, loading takes the memory of one
piece (and, until `place` has taken it, of one parameter).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from itertools import groupby
from typing import Any

import ml_dtypes
import numpy as np

from engine.errors import UnsupportedCheckpoint
from engine.families import Open, open_local, read_config
from engine.model.config import ModelConfig
from engine.model.params import Params, build, declare, leaves
from engine.weights.matching import match
from engine.weights.safetensors import StoredTensor, read_pieces
from engine.weights.tensor_files import stored_tensors

Place = Callable[[str, np.ndarray], Any]
"""Takes a parameter's path and its numbers; returns what stands in the tree: the array itself, or one on a device."""
Progress = Callable[[int, int], None]
"""Called after every piece with the bytes read so far and the bytes in all."""

DTYPES = {"float32": np.dtype(np.float32), "bfloat16": np.dtype(ml_dtypes.bfloat16)}

_EXPONENT_BITS = {"F32": (np.uint32, 0x7F800000), "F16": (np.uint16, 0x7C00), "BF16": (np.uint16, 0x7F80)}


def load_params(
    checkpoint: str,
    config: ModelConfig,
    *,
    open: Open = open_local,
    dtype: str,
    place: Place = lambda _, array: array,
    progress: Progress = lambda _done_bytes, _total_bytes: None,
) -> Params:
    """Loads the checkpoint's parameters as `dtype`, "float32" or "bfloat16" (rounded to the nearest, ties to even).

    `config` is what `read_config` read from the same checkpoint.
    """
    family = read_config(checkpoint, open).family
    matched = match(family, config, stored_tensors(checkpoint, open))
    declared = dict(leaves(declare(config)))
    in_file_order = sorted(matched.sources.values(), key=lambda source: (source.tensor.file, source.tensor.start))
    unfilled = Counter(fill.path for source in in_file_order for fill in source.fills)
    arrays: dict[str, np.ndarray] = {}
    placed: dict[str, Any] = {}
    done_bytes = 0
    for file_path, sources in groupby(in_file_order, key=lambda source: source.tensor.file):
        with open(file_path) as file:
            for source in sources:
                stored, filled = np.empty(source.tensor.size, DTYPES[dtype]), 0
                first = source.fills[0]
                if first.stored == tuple((axis,) for axis in first.parameter.axes) and len(source.fills) == 1:
                    arrays[first.path] = stored.reshape(first.parameter.shape)
                for piece in read_pieces(file, source.tensor):
                    _check_finite(piece, source.tensor)
                    stored[filled : filled + piece.size] = piece
                    filled += piece.size
                    done_bytes += piece.nbytes
                    progress(done_bytes, matched.size_bytes)
                for fill in source.fills:
                    path = fill.path
                    array = arrays[path] if path in arrays else np.empty(declared[path].shape, DTYPES[dtype])
                    arrays[path] = array
                    part = array if fill.expert is None else array[fill.expert]
                    taken = tuple(slice(at, at + size) for at, size in zip(fill.starts, fill.shape, strict=True))
                    sizes: dict[str, int] = dict(zip(fill.parameter.axes, fill.parameter.shape, strict=True))
                    axes = [str(axis) for merged in fill.stored for axis in merged]
                    wanted = [axis for axis in fill.parameter.axes if axis in axes]
                    named = stored.reshape(source.tensor.shape)[taken].reshape([sizes[axis] for axis in axes])
                    if array.base is not stored:
                        part[...] = named.transpose([axes.index(axis) for axis in wanted])
                    unfilled[path] -= 1
                    if not unfilled[path]:
                        placed[path] = place(path, arrays.pop(path))
    if matched.head_copy:
        _check_copy(matched.head_copy, matched.sources["embedding"].tensor, open)
    return build(config, lambda path, _: placed[path])


def _check_finite(piece: np.ndarray, tensor: StoredTensor) -> None:
    """By the bits: a number whose exponent is all ones is infinite or NaN (numpy is slow to say so of bfloat16)."""
    unsigned, exponent = _EXPONENT_BITS[tensor.dtype]
    if ((piece.view(unsigned) & exponent) == exponent).any():
        raise UnsupportedCheckpoint(
            f"{tensor.name} in {tensor.file} holds NaN or infinity: the file is damaged, or its training diverged"
        )


def _check_copy(copy: StoredTensor, embedding: StoredTensor, open: Open) -> None:
    with open(copy.file) as copies, open(embedding.file) as originals:
        pairs = zip(read_pieces(copies, copy), read_pieces(originals, embedding), strict=True)
        if not all(np.array_equal(one.astype(np.float32), other.astype(np.float32)) for one, other in pairs):
            raise UnsupportedCheckpoint(
                f"config.json says tie_word_embeddings, but {copy.name} differs from {embedding.name}; say "
                "tie_word_embeddings: false to use it"
            )
