"""YAML documents: what words mean, where they stand, and what is refused."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs.document import parse
from pipeline.errors import JobError


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("no", "no"),
        ("on", "on"),
        ("2026-01-31", "2026-01-31"),
        ("1:30", "1:30"),
        ("<<", "<<"),
        ("true", True),
        ("False", False),
        ("~", None),
        ("", None),
        ("12", 12),
        ("-3", -3),
        ("010", 10),
        ("0x1F", 31),
        ("0o17", 15),
        ("1e-3", 0.001),
        (".5", 0.5),
        ("5.", 5.0),
        (".inf", math.inf),
        ("-.inf", -math.inf),
        ("'3'", "3"),
        ("!!str 3", "3"),
        ("|\n  two\n  lines", "two\nlines"),
    ],
)
def test_words_mean_what_yaml_1_2_says(text: str, value: object) -> None:
    found = parse(f"a: {text}", source="job.yaml").values["a"]
    assert (found, type(found)) == (value, type(value))


def test_a_value_that_is_not_a_number_is_kept_as_such() -> None:
    assert math.isnan(parse("a: .nan", source="job.yaml").values["a"])


def test_every_key_and_element_has_its_line() -> None:
    document = parse("a: 1\nb:\n  c: [2,\n    3]\n", source="job.yaml")
    assert document.values == {"a": 1, "b": {"c": [2, 3]}}
    assert document.lines == {(): 1, ("a",): 1, ("b",): 2, ("b", "c"): 3, ("b", "c", 0): 3, ("b", "c", 1): 4}


def test_an_anchor_is_expanded() -> None:
    assert parse("a: &x {k: 1}\nb: *x", source="job.yaml").values == {"a": {"k": 1}, "b": {"k": 1}}


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("a: 1\nb: 2\na: 3", r"^job.yaml:3:1: the key 'a' is given twice; the first is on line 1$"),
        ("x: {a: 1, a: 1}", r"^job.yaml:1:11: the key 'a' is given twice"),
        ("a: !!python/object/apply:os.system [ls]", r"^job.yaml:1:4: the tag .*os.system' is not accepted"),
        ("a: !secret x", r"the tag '!secret' is not accepted"),
        ("a: &a [*a]", r"^job.yaml is nested too deeply, or refers to itself$"),
        ("[" * 100_000, r"^job.yaml is nested too deeply"),
        ("a: [1", r"^job.yaml:1:6: not valid YAML: .*quotes$"),
        ("a: {split: train[:10%]}", r"^job.yaml:1:17: not valid YAML: .*quotes$"),
        ("a: 1\n---\nb: 2", r"^job.yaml:2:1: not valid YAML: but found another document"),
        ("a: \x00", r"^job.yaml: not valid YAML: .*not allowed"),
        ("? [1]\n: 2", r"^job.yaml:1:3: a key must be a word"),
        ("a: {{ question }}", r"^job.yaml:1:5: a key must be a word; put text that begins with { in quotes$"),
        ("a: " + "9" * 5000, r"^job.yaml:1:4: '9{40}' is not a value"),
        ('a: "\\ud800"', r"^job.yaml:1:4: .*is not a value: .utf-16"),
        ('"\\ud800": a', r"^job.yaml:1:1: .*is not a value: .utf-16"),
        ("a: " + "x" * (1 << 20), r"^job.yaml is larger than 1048576 bytes"),
    ],
)
def test_what_is_not_a_plain_document_is_refused(text: str, problem: str) -> None:
    with pytest.raises(JobError, match=problem):
        parse(text, source="job.yaml")


def test_anchors_cannot_blow_the_document_up() -> None:
    lines = ["l0: &l0 [x]"] + [f"l{i}: &l{i} [{', '.join([f'*l{i - 1}'] * 10)}]" for i in range(1, 10)]
    with pytest.raises(JobError, match="more than 100000 values once its anchors are expanded"):
        parse("\n".join(lines), source="job.yaml")


_plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)


@given(_plain)
def test_json_is_yaml(value: object) -> None:
    assert parse(json.dumps(value, ensure_ascii=True), source="job.yaml").values == value
