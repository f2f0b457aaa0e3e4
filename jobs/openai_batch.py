"""The output files of OpenAI's Batch API: a line for each request, those that failed in a file of their own.

    {"id", "custom_id": RECORD_ID, "response": {"status_code": 200, "request_id", "body": COMPLETION}, "error": null}
    {"id", "custom_id": RECORD_ID, "response": null, "error": {"code": KIND, "message": REASON}}

The body is a chat completion where the job writes messages or reads requests for chats, else a text completion. The
samples of a record are its choices. Log-probabilities stay in the Parquet files: that form wants the text of every
token, and results hold token ids. Reference: platform.openai.com/docs/api-reference/batch/request-output.
"""

from __future__ import annotations

import datetime
import hashlib
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from pipeline.errors import JobError
from pipeline.openai_requests import CHAT, OPENAI_BATCH
from schemas.manifest import Plan

_NEEDED = (
    "record_id", "source_file", "source_row", "sample_index", "status", "error", "text", "finish_reason",
    "prompt_token_count", "completion_token_count",
)  # fmt: skip


def refuse_other_tasks(plan: Plan) -> None:
    if plan.task != "generate":
        raise JobError(f"openai-batch holds completions; this output is of task {plan.task}: use jsonl or csv")


def columns(present: Sequence[str]) -> list[str]:
    """What lines are made of."""
    return [name for name in _NEEDED if name in present]


def lines(rows: Iterable[Mapping[str, Any]], plan: Plan, started_at: str | None) -> Iterator[dict[str, Any]]:
    """One line for each record; `rows` have the samples of a record together. All are dated when the job began."""
    created = int(datetime.datetime.fromisoformat(started_at).timestamp()) if started_at else 0
    prompt = plan.settings.get("prompt") or {}
    is_chat = bool(prompt.get("messages")) or prompt.get(OPENAI_BATCH) == CHAT
    for _, group in itertools.groupby(rows, key=lambda row: (row["source_file"], row["source_row"])):
        samples = list(group)
        first = samples[0]
        name = f"{plan.job_fingerprint}\0{first['source_file']}\0{first['source_row']}"
        identity = hashlib.blake2b(name.encode("utf-8", "surrogatepass"), digest_size=12).hexdigest()
        line: dict[str, Any] = {"id": f"batch_req_{identity}", "custom_id": first["record_id"]}
        if first["status"] == "failed":
            code = str(first["error"]).split(":", 1)[0]
            yield line | {"response": None, "error": {"code": code, "message": first["error"]}}
        else:
            body = {"created": created} | _completion(samples, plan, identity, is_chat)
            response = {"status_code": 200, "request_id": f"req_{identity}", "body": body}
            yield line | {"response": response, "error": None}


def _completion(samples: Sequence[Mapping[str, Any]], plan: Plan, identity: str, is_chat: bool) -> dict[str, Any]:
    prompt_tokens = samples[0]["prompt_token_count"] or 0
    completion_tokens = sum(sample["completion_token_count"] or 0 for sample in samples)
    return {
        "id": f"{'chatcmpl' if is_chat else 'cmpl'}-{identity}",
        "object": "chat.completion" if is_chat else "text_completion",
        "model": plan.model_fingerprint,
        "choices": [_choice(sample, is_chat) for sample in samples],
        "usage": {
            "prompt_tokens": prompt_tokens,
            "completion_tokens": completion_tokens,
            "total_tokens": prompt_tokens + completion_tokens,
        },
        "system_fingerprint": plan.job_fingerprint,
    }


def _choice(sample: Mapping[str, Any], is_chat: bool) -> dict[str, Any]:
    text = sample["text"] or ""
    said = {"message": {"role": "assistant", "content": text, "refusal": None}} if is_chat else {"text": text}
    return {
        "index": sample["sample_index"],
        **said,
        "logprobs": None,
        "finish_reason": sample["finish_reason"],
    }
