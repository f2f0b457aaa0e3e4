"""Counters that a runner shows while it runs, in the namespace `penstock`. A name says its unit.

A runner keeps those of bundles it has committed, so a shard that is repeated counts once there. They are for watching:
the numbers of record are in the manifest.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping

from apache_beam.metrics.metric import Metrics

from schemas.manifest import ShardEntry

NAMESPACE = "penstock"

OF_THE_ENGINE = {
    "device_seconds": "device_milliseconds",
    "compile_seconds": "compile_milliseconds",
    "out_of_memory_retries": "out_of_memory_retries",
    "decode_steps": "decode_steps",
    "prefill_tokens": "prefill_tokens",
    "prefill_tokens_padded": "prefill_tokens_padded",
}
"""The engine's counters as a runner shows them, whole numbers all."""


class EngineReport:
    """What an engine has counted since this was asked last, by any of the threads that share it."""

    def __init__(self) -> None:
        self._reported: dict[str, int | float] = {}
        self._lock = threading.Lock()

    def since_last(self, counters: Mapping[str, int | float]) -> dict[str, int | float]:
        with self._lock:
            grown = {name: max(0, count - self._reported.get(name, 0)) for name, count in counters.items()}
            self._reported = dict(counters)
        return grown


def count_computed(entry: ShardEntry, seconds: float, engine: Mapping[str, int | float]) -> None:
    """A shard was computed here, in so long; `engine` is what its engine has counted since the last one."""
    _count(
        shards_computed=1,
        records_ok=entry.ok,
        records_failed=entry.failed,
        prompt_tokens=entry.prompt_tokens,
        generated_tokens=entry.completion_tokens,
        scored_tokens=entry.scored_tokens,
    )
    Metrics.distribution(NAMESPACE, "shard_milliseconds").update(round(1000 * seconds))
    for name, shown in OF_THE_ENGINE.items():
        count = engine.get(name, 0)
        _count(**{shown: round(1000 * count) if shown.endswith("milliseconds") else round(count)})
    if slot_steps := engine.get("slot_steps_total"):
        busy_percent = round(100 * engine.get("slot_steps_busy", 0) / slot_steps)
        Metrics.distribution(NAMESPACE, "slots_busy_percent").update(busy_percent)


def count_found_done() -> None:
    """A shard's result file was there already."""
    _count(shards_found_done=1)


def count_left_to_another_run() -> None:
    """A shard was put off, since another run is computing it."""
    _count(shards_left_to_another_run=1)


def _count(**counts: int) -> None:
    for name, count in counts.items():
        Metrics.counter(NAMESPACE, name).inc(count)
