"""The result table of a `score` job: one row per record; lists have one element per continuation, in order.

When the whole text is scored there is one continuation, the text itself, and its perplexity is filled in.
"""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa

from .columns import IDENTITY, PROVENANCE, column, table

SCORE_VERSION = 1

_TOKEN_LOGPROBS = pa.list_(pa.list_(pa.float32()))

SCORE_COLUMNS = (
    *IDENTITY,
    column("continuations", pa.list_(pa.string()), "The scored continuations."),
    column("logprob", pa.list_(pa.float64()), "Natural-log likelihood of each continuation."),
    column("token_count", pa.list_(pa.int32()), "Tokens of each continuation."),
    column("is_greedy", pa.list_(pa.bool_()), "Whether greedy decoding would produce the continuation."),
    column("token_logprobs", _TOKEN_LOGPROBS, "Per continuation and token; null unless the job asks."),
    column("best_index", pa.int32(), "The continuation with the highest logprob, the first of equals."),
    column("logprob_per_token", pa.list_(pa.float64()), "logprob / tokens of the continuation."),
    column("logprob_per_byte", pa.list_(pa.float64()), "logprob / UTF-8 bytes of the continuation."),
    column("perplexity", pa.float64(), "exp(-logprob / tokens) of a whole text; null for continuations."),
    *PROVENANCE,
)


def score_schema(kept: Sequence[pa.Field] = ()) -> pa.Schema:
    """The schema of a score file that carries the input columns `kept`."""
    return table("score", SCORE_VERSION, SCORE_COLUMNS, kept)
