"""Documents on disk: written and read back the same, and never read with anything guessed."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.documents import DocumentError, decode
from schemas.manifest import InputFile, Plan, ShardEntry, Summary

ENTRY = ShardEntry(
    shard=3,
    file="part-00003-of-00004.parquet",
    rows=10,
    ok=9,
    failed=1,
    failed_reasons={"invalid JSON": 1},
    prompt_tokens=50,
    completion_tokens=90,
    scored_tokens=0,
    started_at="2026-01-31T12:00:00.000+00:00",
    seconds=1.5,
    job_fingerprint="f",
    engine={"decode_steps": 7, "device_seconds": 0.25},
)
PLAN = Plan(
    name="capitals",
    task="generate",
    table_version=1,
    job_fingerprint="j",
    model_fingerprint="m",
    tokenizer_fingerprint="t",
    settings={"sampling": {"temperature": 0.0, "stop": ["\n"]}},
    columns="",
    shard_rows=10,
    rows_total=10,
    inputs=(InputFile("/d/é.jsonl", 100, "sha256:0"),),
    shards=({"shard": 0, "rows": 10}, {"shard": 1, "rows": 0}),
)


def changed(document, **changes):
    return json.dumps({**json.loads(document.to_json()), **changes}).encode()


@given(
    st.builds(
        ShardEntry,
        shard=st.integers(0),
        seconds=st.floats(0, allow_nan=False, allow_infinity=False),
        failed_reasons=st.dictionaries(st.text(st.characters(codec="utf-8")), st.integers()),
        engine=st.dictionaries(
            st.text(st.characters(codec="utf-8")),
            st.integers() | st.floats(allow_nan=False, allow_infinity=False),
        ),
        file=st.text(st.characters(codec="utf-8")),
        started_at=st.text(st.characters(codec="utf-8")),
        job_fingerprint=st.text(st.characters(codec="utf-8")),
        version=st.just(1),
        **dict.fromkeys(("rows", "ok", "failed"), st.integers()),
        **dict.fromkeys(("prompt_tokens", "completion_tokens", "scored_tokens"), st.integers()),
    )
)
def test_a_document_survives_the_way_to_disk_and_back(entry):
    assert ShardEntry.from_json(entry.to_json()) == entry


def test_a_plan_survives_too_and_has_one_line_per_shard():
    assert Plan.from_json(PLAN.to_json()) == PLAN
    assert b'\n  {"shard": 1, "rows": 0}\n' in PLAN.to_json()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"colour": 1}, "unknown key 'colour'"),
        ({"shard": "3"}, "'shard' must be int, not '3'"),
        ({"shard": True}, "'shard' must be int, not True"),
        ({"rows": 1.5}, "'rows' must be int"),
        ({"file": None}, "'file' must be str, not None"),
        ({"failed_reasons": {"a": "b"}}, "'failed_reasons.a' must be int"),
        ({"failed_reasons": []}, "'failed_reasons' must be"),
        ({"engine": {"steps": True}}, "'engine.steps' must be"),
        ({"version": 2}, r"newer Penstock \(version 2, this one reads up to 1\); upgrade"),
        ({"version": 0}, "version 0, not 1"),
        ({"version": "1"}, "version '1', not 1"),
        ({"version": True}, "version True, not 1"),
    ],
)
def test_what_is_wrong_is_named(changes, message):
    with pytest.raises(DocumentError, match=message):
        ShardEntry.from_json(changed(ENTRY, **changes))


def test_a_missing_key_is_named():
    values = json.loads(ENTRY.to_json())
    del values["seconds"]
    with pytest.raises(DocumentError, match="missing key 'seconds'"):
        ShardEntry.from_json(json.dumps(values).encode())


def test_a_key_is_named_with_the_way_to_it():
    broken = changed(PLAN, inputs=[{"url": "a", "size_bytes": 1, "etag": "e"}, {"url": 7, "size_bytes": 1, "etag": ""}])
    with pytest.raises(DocumentError, match=r"'inputs\[1\].url' must be str, not 7"):
        Plan.from_json(broken)
    with pytest.raises(DocumentError, match=r"unknown key 'inputs\[0\].mtime'"):
        Plan.from_json(changed(PLAN, inputs=[{"url": "a", "size_bytes": 1, "etag": "e", "mtime": 2}]))


@given(st.integers(0, len(ENTRY.to_json()) - 3))
def test_half_a_document_is_never_read(length):
    with pytest.raises(DocumentError, match="not whole JSON"):
        ShardEntry.from_json(ENTRY.to_json()[:length])


@pytest.mark.parametrize("data", [b"null", b"[]", b'"x"', b"\xff\xfe{}", b"{}"])
def test_what_is_no_document_is_refused(data):
    with pytest.raises(DocumentError):
        Summary.from_json(data)


def test_decode_checks_tuples_of_fixed_length():
    assert decode(InputFile, {"url": "u", "size_bytes": 1, "etag": "e"}) == InputFile("u", 1, "e")
    with pytest.raises(DocumentError, match="must be an object"):
        decode(InputFile, [1])
