"""Fills every parameter from its tensors, piece by piece, straight into arrays of the dtype they are to have.

Only the boxes wanted here are read, each byte once. Beyond the model itself, loading takes the parameters that are
being filled, together no more than the largest of them (or FILLED_BYTES), and a piece for each reader.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Literal

import ml_dtypes
import numpy as np

from engine.families import Open, open_local, read_config
from engine.layout import HeldSizes
from engine.model.config import ModelConfig
from engine.model.params import Parameter, Params, build
from engine.weights.destination import Destination, OnHost, Place
from engine.weights.matching import match
from engine.weights.plan import Group, plan
from engine.weights.readers import Readers
from engine.weights.store import survey
from engine.weights.tensor_files import stored_tensors

Progress = Callable[[int, int], None]
"""Called again and again with the bytes read so far and the bytes in all that are read here."""

DTYPES = {"float32": np.dtype(np.float32), "bfloat16": np.dtype(ml_dtypes.bfloat16)}
FILLED_BYTES = 64 << 20


def load_params(
    checkpoint: str,
    config: ModelConfig,
    *,
    open: Open = open_local,
    dtype: str,
    weights: Literal["int8"] | None = None,
    held: HeldSizes | None = None,
    to: Destination | None = None,
    place: Place = lambda _, array: array,
    progress: Progress = lambda _done_bytes, _total_bytes: None,
    readers: int | None = None,
) -> Params:
    """Loads the checkpoint's parameters as `dtype`, "float32" or "bfloat16" (rounded to the nearest, ties to even).

    Args:
      config: what `read_config` read from the same checkpoint.
      open: opens one file for reading; several threads call it at the same time.
      weights: "int8" quantises matrices as they are loaded (engine.model.quantized); the rest is held as `dtype`.
      held: sizes that are padded with zeros.
      to: which parts of parameters are wanted here, and where; such as engine.weights.shards.Shards. If not given,
        whole parameters are handed to `place`, an int8 one's values by its path and then its scales as PATH.scale.
      progress: called by this thread, as `place` and `to` are.
      readers: threads that read; as many as suit the store if not given.
    """
    matched = match(read_config(checkpoint, open).family, config, stored_tensors(checkpoint, open))
    to = OnHost(place) if to is None else to

    def dtype_of(parameter: Parameter) -> np.dtype:
        return np.dtype(np.int8) if weights == "int8" and parameter.is_matrix else DTYPES[dtype]

    store = survey(open, matched.sources["embedding"].tensor.file, readers)
    groups = plan(matched, config, held, to, dtype_of, store.skipped_bytes)
    placed = _load(groups, to, Readers(open, store.readers), progress)

    def of(path: str, parameter: Parameter) -> Any:
        if path not in placed.scales:
            return placed.arrays[path]
        from engine.weights.int8 import Quantized  # needs jax, and loading does not otherwise

        return Quantized(placed.arrays[path], to.whole_scale(parameter, placed.scales[path]))

    return build(config, of, held)


@dataclass(frozen=True)
class _Placed:
    """By path."""

    arrays: dict[str, Any] = field(default_factory=dict)
    scales: dict[str, Any] = field(default_factory=dict)


def _load(groups: Sequence[Group], to: Destination, readers: Readers, progress: Progress) -> _Placed:
    total_bytes = sum(filling.read_bytes for group in groups for filling in group.fillings)
    most_bytes = max(FILLED_BYTES, *(group.size_bytes for group in groups))
    placed = _Placed()
    running: deque[tuple[Group, deque[Future[int]]]] = deque()
    done_bytes = filled_bytes = 0

    def wait() -> None:
        """For the oldest work; places what is complete."""
        nonlocal done_bytes, filled_bytes
        group, jobs = running[0]
        if jobs:
            done_bytes += jobs.popleft().result()
            progress(done_bytes, total_bytes)
        if not jobs:
            running.popleft()
            for one in group.filled:
                placed.arrays[one.path] = to.place(one.path, one.parameter, one.arrays)
                if one.is_int8:
                    placed.scales[one.path] = to.place_scale(one.path, one.parameter, one.scales)
                one.arrays.clear()
                one.scales.clear()
            filled_bytes -= group.size_bytes

    with readers:
        for group in groups:
            while running and filled_bytes + group.size_bytes > most_bytes:
                wait()
            filled_bytes += group.size_bytes
            for one in group.filled:
                one.allocate()
            jobs = [readers.submit(job) for filling in group.fillings for job in filling.jobs()]
            running.append((group, deque(jobs)))
        while running:
            wait()
    return placed
