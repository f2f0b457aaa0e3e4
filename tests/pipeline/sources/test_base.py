from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.sources.base import Span, WorkItem, spans_between, text_if_utf8

ITEM = WorkItem(3, "gs://b/a.jsonl", "jsonl", "a.jsonl", 2000, 1000, 17, 4711, (("k", "v"), ("l", "w")))


def test_a_work_item_survives_json_and_refuses_what_is_not_one():
    assert WorkItem.from_json(ITEM.to_json()) == ITEM
    assert hash(ITEM) == hash(replace(ITEM))
    without = {name: value for name, value in ITEM.to_json().items() if name != "rows"}
    for wrong in (without, {**ITEM.to_json(), "colour": "red"}):
        with pytest.raises(ValueError, match="a work item has the fields"):
            WorkItem.from_json(wrong)


@given(
    batches=st.lists(st.lists(st.integers(1, 9), max_size=8), max_size=6),
    start=st.integers(0, 3),
    shard_rows=st.integers(1, 7),
)
def test_spans_cover_all_rows_whatever_batches_their_ends_come_in(batches, start, shard_rows):
    end, row_ends = start, []
    for batch in batches:
        ends = []
        for row_bytes in batch:
            end += row_bytes
            ends.append(end)
        row_ends.append(ends)
    flat = [end for ends in row_ends for end in ends]

    found = list(spans_between(row_ends, start, shard_rows))

    expected = []
    for first in range(0, len(flat), shard_rows):
        ends = flat[first : first + shard_rows]
        expected.append(Span(first, len(ends), flat[first - 1] if first else start, ends[-1]))
    assert found == expected


def test_bytes_become_text_where_they_are_utf8():
    assert text_if_utf8(b"caf\xc3\xa9") == "café"
    assert text_if_utf8(b"caf\xe9") == b"caf\xe9"
    assert text_if_utf8([b"a", {"k": (b"\xff", b"b")}, 1, None]) == ["a", {"k": (b"\xff", "b")}, 1, None]
