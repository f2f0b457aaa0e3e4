"""What of a job its plan depends on: the model and how it is held, what is asked of a row. Not which rows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jobs.launch import Parts

_OF_SAMPLING = ("max_tokens", "min_tokens", "n", "stop", "ignore_eos")


def asked_of(parts: Parts) -> dict[str, Any]:
    """As JSON."""
    job = parts.job
    settings: dict[str, Any] = job.settings()
    sampling = settings["sampling"] or {}
    return {
        "model": parts.model.fingerprint,
        "dtype": job.model.dtype,
        "weights": job.model.weights,
        "kv": job.model.kv,
        "task": job.task,
        "prompt": settings["prompt"],
        "score": settings["score"],
    } | {f"sampling.{name}": sampling[name] for name in _OF_SAMPLING if name in sampling}


def differences(planned: Mapping[str, Any], asked: Mapping[str, Any]) -> Iterator[str]:
    """Where a job is another than the one that was planned, in words."""
    for name in dict.fromkeys([*planned, *asked]):
        if planned.get(name) != asked.get(name):
            yield f"{name}: planned for {_shown(planned.get(name))}, the job has {_shown(asked.get(name))}"


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
