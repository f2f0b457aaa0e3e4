"""Fills every parameter from its tensors, piece by piece, straight into arrays of the dtype they are to have.

Only the boxes wanted here are read, each byte once. Beyond the model itself, loading takes the parameters that are
being filled, together no more than the largest of them (or FILLED_BYTES), and a piece for each reader.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Literal

import ml_dtypes
import numpy as np

from engine.families import Open, open_local, read_config
from engine.layout import HeldSizes
from engine.model.config import ModelConfig
from engine.model.params import Parameter, Params, build, declare, leaves
from engine.weights.destination import Destination, OnHost, Place
from engine.weights.filling import Filled, Filling, fillings
from engine.weights.matching import Matched, Source, match
from engine.weights.readers import Readers, can_be_shared
from engine.weights.tensor_files import stored_tensors

Progress = Callable[[int, int], None]
"""Called again and again with the bytes read so far and the bytes in all that are read here."""

DTYPES = {"float32": np.dtype(np.float32), "bfloat16": np.dtype(ml_dtypes.bfloat16)}
READERS = 8
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
    readers: int = READERS,
) -> Params:
    """Loads the checkpoint's parameters as `dtype`, "float32" or "bfloat16" (rounded to the nearest, ties to even).

    Args:
      config: what `read_config` read from the same checkpoint.
      open: opens one file for reading; several threads call it at the same time.
      weights: "int8" quantises matrices as they are loaded (engine.model.quantized); the rest is held as `dtype`.
      held: sizes that are padded with zeros.
      to: which parts of parameters are wanted here, and where; such as engine.weights.shards.Shards. If not given,
        whole parameters are handed to `place`, an int8 one's values by its path and then its scales as PATH.scale.
      readers: threads that read.
    """
    matched = match(read_config(checkpoint, open).family, config, stored_tensors(checkpoint, open))
    to = OnHost(place) if to is None else to
    declared: dict[str, Parameter] = dict(leaves(declare(config, held)))
    unpadded = dict(leaves(declare(config)))

    def filled(path: str) -> Filled:
        parameter = declared[path]
        int8 = weights == "int8" and parameter.is_matrix
        numbers = np.dtype(np.int8) if int8 else DTYPES[dtype]
        scale_boxes = to.scale_boxes(parameter) if int8 else ()
        return Filled(path, parameter, to.boxes(parameter), scale_boxes, numbers, parameter != unpadded[path])

    if readers > 1 and not can_be_shared(open, matched.sources["embedding"].tensor.file):
        readers = 1
    groups = [_group(sources, filled, matched, config, held) for sources in _together(matched.sources.values())]
    placed = _load(groups, to, open, progress, readers)

    def of(path: str, parameter: Parameter) -> Any:
        if path not in placed.scales:
            return placed.arrays[path]
        from engine.weights.int8 import Quantized  # jax, which is not needed to load for another program

        return Quantized(placed.arrays[path], to.whole_scale(parameter, placed.scales[path]))

    return build(config, of, held)


@dataclass(frozen=True)
class _Group:
    """Parameters that are filled at the same time, since they share a tensor, and all they are filled from."""

    filled: Sequence[Filled]
    fillings: Sequence[Filling]

    @property
    def size_bytes(self) -> int:
        return sum(one.size_bytes for one in self.filled)


@dataclass(frozen=True)
class _Placed:
    arrays: dict[str, Any]
    scales: dict[str, Any]


def _together(sources: Iterable[Source]) -> list[list[Source]]:
    """Sources of the same parameters together; otherwise in the order of their files, as are those of a group."""
    group_of: dict[str, list[Source]] = {}
    for source in sorted(sources, key=lambda source: (source.tensor.file, source.tensor.start)):
        joined = [source]
        for paths in {id(group): group for fill in source.fills if (group := group_of.get(fill.path))}.values():
            joined = [*paths, *joined]
        for one in joined:
            group_of.update((fill.path, joined) for fill in one.fills)
    groups = list({id(group): group for group in group_of.values()}.values())
    return sorted(groups, key=lambda group: (group[0].tensor.file, group[0].tensor.start))


def _group(
    sources: Sequence[Source],
    filled: Callable[[str], Filled],
    matched: Matched,
    config: ModelConfig,
    held: HeldSizes | None,
) -> _Group:
    by_path: Mapping[str, Filled] = {path: filled(path) for path in {fill.path: 0 for s in sources for fill in s.fills}}
    read = []
    for source in sources:
        copy = matched.head_copy if source is matched.sources["embedding"] else None
        read += fillings(source, by_path, config, held, copy)
    return _Group(list(by_path.values()), read)


def _load(groups: Sequence[_Group], to: Destination, open: Open, progress: Progress, readers: int) -> _Placed:
    total_bytes = sum(filling.read_bytes for group in groups for filling in group.fillings)
    most_bytes = max(FILLED_BYTES, *(group.size_bytes for group in groups))
    placed = _Placed({}, {})
    running: deque[tuple[_Group, deque[Future[int]]]] = deque()
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

    with Readers(open, readers) as reading:
        for group in groups:
            while running and filled_bytes + group.size_bytes > most_bytes:
                wait()
            filled_bytes += group.size_bytes
            for one in group.filled:
                one.allocate()
            jobs = [reading.submit(job) for filling in group.fillings for job in filling.jobs()]
            running.append((group, deque(jobs)))
        while running:
            wait()
    return placed
