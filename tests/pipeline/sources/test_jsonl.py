"""What is a good JSON line, what is a bad one and why, and that bad ones never cost another row."""

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.sources.jsonl import parse

from .reading import in_memory, plan, read, values_and_errors

BAD = {
    b'{"a": "\xff"}': "not UTF-8: invalid start byte at byte 7",
    b'{"a": "\xed\xa0\x80"}': "not UTF-8: invalid continuation byte at byte 7",
    b'{"a": "half a li': "invalid JSON: Unterminated string starting at character 6",
    b'{"a": 1} {"a": 2}': "invalid JSON: Extra data at character 9",
    b"{'a': 1}": "invalid JSON: Expecting property name enclosed in double quotes at character 1",
    b"\xef\xbb\xbf{}": "invalid JSON: Expecting value at character 0",
    b'{"a": NaN}': "invalid JSON: NaN is not a JSON number",
    b'{"a": [-Infinity]}': "invalid JSON: -Infinity is not a JSON number",
    b'{"a": 1e999}': "invalid JSON: a number is too large for a 64-bit float",
    b'{"a": "\\ud800"}': "invalid JSON: an escape of half a surrogate pair",
    b'{"\\udc00": 1}': "invalid JSON: an escape of half a surrogate pair",
    b"[1]": "not a JSON object: an array",
    b'"text"': "not a JSON object: a string",
    b"17": "not a JSON object: a number",
    b"true": "not a JSON object: a boolean",
    b"null": "not a JSON object: null",
    b"\x00": "invalid JSON: Expecting value at character 0",
}


@pytest.mark.parametrize(("line", "reason"), BAD.items())
def test_a_bad_line_says_what_is_wrong(line, reason):
    assert parse(line) == (None, reason)


def test_huge_integers_are_bad_rows_not_exceptions():
    values, error = parse(b'{"a": ' + b"9" * 10_000 + b"}")
    assert values is None
    assert error is not None
    assert error.startswith("invalid JSON: Exceeds the limit")


@pytest.mark.parametrize(
    ("line", "values"),
    [
        (b'{"a": 1, "a": 2}', {"a": 2}),
        (b'  {"a": null}\r', {"a": None}),
        (b'{"a": "\\ud83d\\ude00 \\u00e9"}', {"a": "😀 é"}),
        (b'{"a": "\\\\ud800"}', {"a": "\\ud800"}),
        (b'{"a": -0.0, "b": 1e308, "c": 12345678901234567890}', {"a": -0.0, "b": 1e308, "c": 12345678901234567890}),
        (b'{"": {"b": [[], {}]}}', {"": {"b": [[], {}]}}),
        (b"{}", {}),
    ],
)
def test_a_good_line_gives_its_object(line, values):
    assert parse(line) == (values, None)


def nested(depth: int) -> bytes:
    return b'{"a": ' + b"[" * (depth - 1) + b"]" * (depth - 1) + b"}"


@pytest.mark.parametrize("depth", [129, 1_000, 100_000])
def test_deep_nesting_is_a_bad_row(depth):
    assert parse(nested(depth)) == (None, "invalid JSON: nested over 128 deep")


def test_the_limit_of_nesting_does_not_depend_on_who_calls():
    def below(frames: int):
        return below(frames - 1) if frames else (parse(nested(128)), parse(nested(129)))

    for frames in (0, 600):
        (values, error), deeper = below(frames)
        assert values is not None
        assert error is None
        assert deeper == (None, "invalid JSON: nested over 128 deep")


def test_many_brackets_that_are_not_deep_are_fine():
    line = json.dumps({"a": [[{"b": "[[["}]] * 500}).encode()
    assert parse(line) == (json.loads(line), None)


def finite(value) -> bool:
    return not isinstance(value, float) or math.isfinite(value)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats().filter(finite) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@given(
    rows=st.lists(st.dictionaries(st.text(), json_values, max_size=3) | st.sampled_from(sorted(BAD)), max_size=12),
    shard_rows=st.integers(1, 5),
    ascii_only=st.booleans(),
)
def test_every_object_comes_back_between_any_bad_lines(rows, shard_rows, ascii_only):
    bodies = [row if isinstance(row, bytes) else json.dumps(row, ensure_ascii=ascii_only).encode() for row in rows]
    data = b"\n\n".join([b"{}", *bodies])  # a first good line, so that the input is never empty
    found = read(plan(shard_rows, path=in_memory(data, ".jsonl")))
    expected = [({}, None), *((None, BAD[row]) if isinstance(row, bytes) else (row, None) for row in rows)]
    assert values_and_errors(found) == expected


@given(data=st.binary(max_size=120), shard_rows=st.integers(1, 4))
def test_any_bytes_give_the_rows_of_a_plain_pass(data, shard_rows):
    data = b"{}\n" + data
    found = read(plan(shard_rows, path=in_memory(data, ".jsonl")))
    assert values_and_errors(found) == [parse(line) for line in data.split(b"\n") if line.strip()]
