"""Names of an output's files, the kept columns in a plan, and how large a plan gets."""

import pyarrow as pa
import pytest

from schemas.manifest import decode_fields, encode_fields, entry_name, errors_name, part_name

from .test_documents import PLAN


@pytest.mark.parametrize("shards", [1, 10, 99_999, 100_001])
def test_result_files_sort_as_shards_do(shards):
    some = sorted({0, 1, 9, 10, shards // 2, shards - 2, shards - 1} & set(range(shards)))
    names = [part_name(shard, shards) for shard in some]
    assert names == sorted(names)
    assert len(set(names)) == len(names)


def test_names_are_those_of_the_design():
    assert part_name(7, 400) == "part-00007-of-00400.parquet"
    assert entry_name(7) == "00007.json"
    assert errors_name(7) == "00007.jsonl"


def test_kept_columns_survive_as_text():
    struct = pa.struct([("x", pa.list_(pa.float32())), ("t", pa.timestamp("us", "UTC"))])
    fields = [pa.field("a", pa.int64()), pa.field("é", struct), pa.field("d", pa.decimal128(9, 2))]
    assert decode_fields(encode_fields(fields)) == fields
    assert decode_fields(encode_fields([])) == []


def test_the_plan_of_a_million_rows_stays_small():
    shard = {
        "shard": 999,
        "source": "/home/somebody/project/data/questions-00000.jsonl",
        "format": "jsonl",
        "source_file": "questions-00000.jsonl",
        "first_row": 999_000,
        "rows": 1000,
        "start": 123_456_789,
        "stop": 123_567_890,
        "options": {},
    }
    plan = type(PLAN)(**{**PLAN.__dict__, "shards": (shard,) * 1000, "rows_total": 1_000_000})
    assert len(plan.to_json()) < 300_000
