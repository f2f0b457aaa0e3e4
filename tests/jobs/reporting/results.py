"""Outputs to report on: rows with lengths, endings and scores that a test decides."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from pipeline.manifest import Manifest
from pipeline.records import default_record_id
from pipeline.sink import write_shard
from pipeline.sources import open_source
from pipeline.sources.base import WorkItem
from pipeline.workplan import PlanFacts, plan_job
from tests.pipeline.example_output import asked, write_jsonl

Make = Callable[[int], dict[str, Any]]
"""What the row of a number holds besides its identity; one with `error` is failed."""

ENGINE = {
    "slot_steps_busy": 90,
    "slot_steps_total": 100,
    "prefill_tokens": 80,
    "prefill_tokens_padded": 100,
    "device_seconds": 1.0,
}


def completion(number: int) -> dict[str, Any]:
    return {
        "prompt_token_count": 10 + number % 7,
        "completion_token_count": 4,
        "finish_reason": "stop" if number % 5 else "length",
        "cumulative_logprob": -2.0,
        "text": f"answer {number}",
        "token_ids": [1, 2, 3, 4],
    }


def choice(number: int) -> dict[str, Any]:
    logprobs = [-4.0, -1.0 - number % 3]
    return {
        "prompt_token_count": 5,
        "continuations": ["a", "b"],
        "logprob": logprobs,
        "token_count": [2, 2],
        "is_greedy": [False, True],
        "best_index": 1,
        "logprob_per_token": [logprob / 2 for logprob in logprobs],
        "logprob_per_byte": logprobs,
    }


def make_output(
    directory: Path, make: Make = completion, *, rows: int = 25, shards: int | None = None, **changes: Any
) -> str:
    """A finished output, or one of which the first `shards` shards are done; the input lies beside it."""
    source = write_jsonl(directory.parent / f"{directory.name}-input" / "a.jsonl", rows)
    if make is choice:
        changes.setdefault("task", "score")
    output = str(directory)
    plan = plan_job(output, open_source(path=source, format="jsonl"), **asked(keep_columns=[], **changes))
    manifest, facts = Manifest(output, plan), PlanFacts.of(plan)
    for item in manifest.todo()[:shards]:
        write_shard(output, facts, item, _rows(item, facts, make), lambda: ENGINE)
    if shards is None:
        manifest.finalise()
    return output


def _rows(item: WorkItem, facts: PlanFacts, make: Make) -> Iterator[dict[str, Any]]:
    for number in range(item.first_row, item.first_row + item.rows):
        values = make(number)
        yield {
            "record_id": default_record_id(item.source_file, number),
            "sample_index": 0,
            "source_file": item.source_file,
            "source_row": number,
            "status": "failed" if "error" in values else "ok",
            "model_fingerprint": facts.model_fingerprint,
            "job_fingerprint": facts.job_fingerprint,
        } | values
