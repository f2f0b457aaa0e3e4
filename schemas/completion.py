"""The result table of a `generate` job: one row per record and sample, and one per failed record."""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa

from .columns import IDENTITY, PROVENANCE, column, table

COMPLETION_VERSION = 1

_TOP_LOGPROBS = pa.list_(pa.list_(pa.struct([("token_id", pa.int32()), ("logprob", pa.float32())])))

COMPLETION_COLUMNS = (
    *IDENTITY,
    column("text", pa.string(), "The generated text, without special tokens, cut before a stop string."),
    column("token_ids", pa.list_(pa.int32()), "The generated token ids."),
    column("completion_token_count", pa.int32(), "Tokens generated."),
    column("finish_reason", pa.string(), "stop (a token or string), or length (max_tokens or the context)."),
    column("stop_reason", pa.string(), "The stop string or the stop token's id; null for length."),
    column("logprobs", pa.list_(pa.float32()), "Natural-log probability of each generated token."),
    column("cumulative_logprob", pa.float64(), "The sum of logprobs."),
    *PROVENANCE,
    column("top_logprobs", _TOP_LOGPROBS, "Per position the most likely tokens; null unless the job asks."),
)


def completion_schema(kept: Sequence[pa.Field] = ()) -> pa.Schema:
    """The schema of a completion file that carries the input columns `kept`."""
    return table("completion", COMPLETION_VERSION, COMPLETION_COLUMNS, kept)
