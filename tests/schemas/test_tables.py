"""The result tables: the columns that jobs rely on, their descriptions, and the kept columns behind them."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from schemas.completion import completion_schema
from schemas.score import score_schema

KEYS = ["record_id", "sample_index", "source_file", "source_row", "status", "error", "prompt", "prompt_token_count"]
FINGERPRINTS = ["seed", "model_fingerprint", "job_fingerprint"]


COMPLETION = ["text", "token_ids", "completion_token_count", "finish_reason", "stop_reason", "logprobs"]
SCORE = ["continuations", "logprob", "token_count", "is_greedy", "token_logprobs", "best_index"]


def test_completion_columns_are_those_that_jobs_rely_on():
    assert completion_schema().names == [*KEYS, *COMPLETION, "cumulative_logprob", *FINGERPRINTS, "top_logprobs"]


def test_score_columns_are_those_that_jobs_rely_on():
    normalised = ["logprob_per_token", "logprob_per_byte", "perplexity"]
    assert score_schema().names == [*KEYS, *SCORE, *normalised, *FINGERPRINTS]


@pytest.mark.parametrize("schema", [completion_schema, score_schema])
def test_every_column_is_described_also_in_the_file(schema, tmp_path):
    pq.write_table(schema().empty_table(), tmp_path / "t.parquet")
    for field in pq.read_schema(tmp_path / "t.parquet"):
        assert field.metadata[b"description"].endswith(b"."), field.name


@pytest.mark.parametrize("schema", [completion_schema, score_schema])
def test_kept_columns_come_last(schema):
    kept = [pa.field("answer", pa.int64()), pa.field("question", pa.string())]
    assert schema(kept).names == [*schema().names, "answer", "question"]


@pytest.mark.parametrize("name", ["record_id", "prompt", "top_logprobs"])
def test_a_kept_column_with_a_name_of_ours_is_refused_by_name(name):
    with pytest.raises(ValueError, match=f"'{name}'.*already has one"):
        completion_schema([pa.field(name, pa.string())])


def test_a_column_kept_twice_is_refused_by_name():
    with pytest.raises(ValueError, match="'answer'"):
        score_schema([pa.field("answer", pa.string())] * 2)


def test_a_row_without_identity_cannot_be_written(tmp_path):
    row = {"record_id": None, "sample_index": 0, "source_file": "a", "source_row": 0, "status": "ok"}
    table = pa.Table.from_pylist([row], schema=completion_schema())
    with pytest.raises(pa.ArrowInvalid, match="record_id"):
        pq.write_table(table, tmp_path / "t.parquet")
