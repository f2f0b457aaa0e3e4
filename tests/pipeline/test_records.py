"""Identities that must never change: they fix a record's randomness and a job's fingerprint."""

import datetime
import decimal
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.records import canonical_json, content_hash, default_record_id, json_line, record_hash

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=5,
)


def test_hashes_are_fixed_for_ever():
    assert record_hash("a.jsonl:0") == 8908192041764421701
    assert record_hash("é") == 3394012004367669963
    expected = "d764fee2563da33e3d57334755404e635da33c995824b0adfabc4b6e1af4f608"
    assert content_hash({"b": [1, 2.5, None], "a": "é"}) == expected


@given(st.text())
def test_a_record_hash_has_64_bits_for_any_text(record_id):
    assert 0 <= record_hash(record_id) < 2**64


def test_record_hashes_of_many_rows_do_not_collide():
    assert len({record_hash(default_record_id("a.jsonl", row)) for row in range(100_000)}) == 100_000


def test_default_record_id():
    assert default_record_id("dir/a.jsonl", 12) == "dir/a.jsonl:12"


@given(st.dictionaries(st.text(), JSON, max_size=5))
def test_content_does_not_depend_on_the_order_of_keys(values):
    assert content_hash(values) == content_hash(dict(reversed(values.items())))


@given(st.tuples(*[st.dictionaries(st.text(max_size=3), JSON, max_size=2)] * 2))
def test_different_content_has_different_hashes(values):
    same_text = json.dumps(values[0], sort_keys=True) == json.dumps(values[1], sort_keys=True)
    assert (content_hash(values[0]) == content_hash(values[1])) == same_text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (b"\x00\xff", '"AP8="'),
        (datetime.date(2026, 1, 31), '"2026-01-31"'),
        (datetime.datetime(2026, 1, 31, 12, tzinfo=datetime.UTC), '"2026-01-31T12:00:00+00:00"'),
        (datetime.time(1, 2), '"01:02:00"'),
        (datetime.timedelta(minutes=1), "60.0"),
        (decimal.Decimal("1.10"), '"1.10"'),
        (np.float32(0.5), "0.5"),
        (np.array([[1], [2]]), "[[1],[2]]"),
        ({"b": 1, "a": "é"}, '{"a":"é","b":1}'),
    ],
)
def test_values_of_parquet_and_tfds_rows_have_a_json_form(value, text):
    assert canonical_json(value) == text


def test_what_has_no_json_form_is_refused_by_type():
    with pytest.raises(TypeError, match="object has no JSON form"):
        canonical_json({"a": object()})


def test_a_json_line_keeps_the_order_of_keys():
    assert json_line({"b": b"\x00", "a": "é\n"}) == '{"b": "AA==", "a": "é\\n"}\n'
