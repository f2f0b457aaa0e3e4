"""A template's prompts are what it says; a row that lacks something fails with the name of what it lacks."""

from __future__ import annotations

import datetime
import json
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import PromptError
from pipeline.prompts import PromptTemplate


def render(template: str, **values: Any) -> str:
    return PromptTemplate(template).render(values)


def failure(template: str, **values: Any) -> str:
    with pytest.raises(PromptError) as caught:
        render(template, **values)
    return str(caught.value)


@given(st.text(), st.text())
def test_values_come_out_as_they_are(a: str, b: str) -> None:
    """No escaping, no template syntax inside values, no change of newlines."""
    assert render("{{ a }}\n{{ b }}", a=a, b=b) == f"{a}\n{b}"


def test_the_text_is_sent_as_written_with_its_last_newline() -> None:
    assert render("Q: {{ q }}\n\nA:\n", q="é東🎉") == "Q: é東🎉\n\nA:\n"


def test_columns_are_the_names_taken_from_the_row() -> None:
    template = PromptTemplate(
        "{{ a.b }}{% for c in d %}{{ c }}{{ loop.index }}{{ range(2) | list }}{% endfor %}{% set e = f %}{{ e }}"
    )
    assert template.columns == {"a", "d", "f"}


ROWS = {"rows": [{"n": 1, "q": "x"}, {"n": 3, "q": "y"}]}
USES: list[tuple[str, dict[str, Any], str]] = [
    ("{{ n }} {{ x }} {{ b }}", {"n": 3, "x": 1.5, "b": True}, "3 1.5 True"),
    ("{{ d.k }} {{ d['k'] }} {{ d.items() | list }}", {"d": {"k": "v"}}, "v v [('k', 'v')]"),
    ("{{ l }} {{ l | join('; ') }} {{ l[1:] }} {{ l | first }}", {"l": ["a", "b"]}, "['a', 'b'] a; b ['b'] a"),
    (
        "{{ t.isoformat() }} {{ t.strftime('%d %b') }}",
        {"t": datetime.datetime(2024, 1, 2)},
        "2024-01-02T00:00:00 02 Jan",
    ),
    ("{{ m }} {{ '%.1f' % m }}", {"m": Decimal("1.25")}, "1.25 1.2"),
    ("{{ i + 1 }} {{ f }}", {"i": np.int64(3), "f": np.float32(0.5)}, "4 0.5"),
    ("{{ d | tojson }} {{ d | tojson(indent=1) }}", {"d": {"k": "<é>"}}, '{"k": "<é>"} {\n "k": "<é>"\n}'),
    ("{{ s.split()[:2] | join(' ') }} {{ s.replace('a', 'b') | upper }}", {"s": "a b c"}, "a b B B C"),
    ("{{ s | truncate(5) }} {{ s | wordcount }}", {"s": "a b c d e f g"}, "a... 7"),
    ("{{ s | trim | title | center(9) }}|{{ 'x\ny' | indent(2) }}", {"s": " ab c "}, "   Ab C  |x\n  y"),
    ("{{ '{:>4}|{a!r}'.format(7, a='x') }} {{ '%(k)s %%' % {'k': 1} }}", {}, "   7|'x' 1 %"),
    ("{{ '%5s' | format('x') }}", {}, "    x"),
    (
        "{% for r in rows | sort(attribute='n', reverse=true) %}{{ r.n }}{{ ',' if not loop.last }}{% endfor %}",
        ROWS,
        "3,1",
    ),
    ("{% for g in rows | groupby('n') %}{{ g.grouper }}:{{ g.list | length }} {% endfor %}", ROWS, "1:1 3:1 "),
    ("{{ rows | sum(attribute='n') }} {{ rows | map(attribute='n') | max }} {{ [3, 1] | min }}", ROWS, "4 3 1"),
    (
        "{% macro shot(r) %}Q: {{ r.q }}\n{% endmacro %}{% for r in rows %}{{ shot(r) }}{% endfor %}",
        ROWS,
        "Q: x\nQ: y\n",
    ),
    ("{% for i in range(9) %}{% if i is even %}{% continue %}{% endif %}{{ i }}{% endfor %}", {}, "1357"),
    ("{% for i in range(9) %}{% if i > 3 %}{% break %}{% endif %}{{ i }}{% endfor %}", {}, "0123"),
    ("{{ 'abc'[::-1] }} {{ 'abc'[1] }} {{ 'ab' * 2 }} {{ 'b' in 'abc' }}", {}, "cba b abab True"),
    ("{{ 2 ** 10 }} {{ 7 % 4 }} {{ -3 | abs }} {{ 2.5 | round }}", {}, "1024 3 3 2.0"),
]


@pytest.mark.parametrize(("template", "values", "text"), USES)
def test_what_templates_are_used_for(template: str, values: dict[str, Any], text: str) -> None:
    assert render(template, **values) == text


# --- what a row may lack


def test_a_missing_column_is_named_with_those_there_are() -> None:
    assert failure("{{ question }}", b=1, a=2) == "prompt template: the row has no column 'question'; it has a, b"
    assert failure("{{ question }}") == "prompt template: the row has no column 'question'; it has none"
    many = {f"c{i:02}": i for i in range(99)}
    assert failure("{{ question }}", **many).endswith("it has " + ", ".join(sorted(many)[:12]) + ", ...")


def test_a_missing_column_may_be_provided_for() -> None:
    assert render("{{ hint | default('none') }}{% if hint is defined %}{{ hint }}{% endif %}") == "none"


@pytest.mark.parametrize(
    "template",
    [
        "{{ a }}",
        "{{ a | upper }}",
        "{{ a | trim }}",
        "{{ 'x' ~ a }}",
        "{{ 'x' + a }}",
        "{{ '%s' % a }}",
        "{{ '{}'.format(a) }}",
        "{{ [a] | join }}",
        "{{ a | string }}",
        "{{ a | length }}",
        "{{ a | replace('x', 'y') }}",
        "{{ 'x' | replace('x', a) }}",
        "{% for x in a %}{% endfor %}",
        "{{ a.b }}",
        "{{ a[0] }}",
        "{{ a + 1 }}",
        "{{ a > 1 }}",
        "{{ a | list }}",
        "{{ a | int }}",
    ],
)
def test_a_null_in_use_is_named(template: str) -> None:
    assert failure(template, a=None) == "prompt template: column 'a' is null"


def test_a_null_deep_inside_is_named() -> None:
    assert failure("{{ a.b[1].c }}", a={"b": [1, {"c": None}]}) == "prompt template: column 'a'['b'][1]['c'] is null"
    assert failure("{{ names | join(', ') }}", names=["x", None]) == "prompt template: column 'names'[1] is null"
    assert "prints a null" in failure("{{ a.get('x') }}", a={})


def test_a_null_is_none_to_tests_and_false() -> None:
    yes = "{{ a is none }}{{ a == none }}{{ none == a }}{{ a in [none] }}{{ a is defined }}{{ not a }}"
    assert render(yes, a=None) == "True" * 6
    no = "{{ a is undefined }}{{ a == 'x' }}{{ a != none }}{{ a in ['x'] }}{{ a is string }}{{ a is sequence }}"
    assert render(no, a=None) == "False" * 6
    assert render("{{ a or 'x' }}{{ a | default('y') }}{{ 'z' if a else 'n' }}", a=None) == "xyn"


def test_nulls_are_null_in_json_and_none_in_a_printed_list() -> None:
    row = {"a": None, "b": [1, None], "c": {"k": None}}
    assert json.loads(render("{{ {'a': a, 'b': b, 'c': c} | tojson }}", **row)) == row
    assert render("{{ b }}{{ c }}", **row) == "[1, None]{'k': None}"


def test_bytes_and_other_things_fail_only_if_used() -> None:
    assert render("{{ a }}", a="x", image=b"\xff") == "x"
    assert render("{{ a }}{% if image is not none %}{% endif %}", a="x", image=b"\xff") == "x"
    assert (
        failure("{{ image }}", image=b"\xff") == "prompt template: column 'image' holds bytes that are not UTF-8 text"
    )
    assert failure("{{ a }}", a=np.zeros(2)) == "prompt template: column 'a' holds a ndarray"
    assert failure("{{ a }}", a={"b": {1, 2}}["b"]).endswith("holds a set")


def test_data_nested_without_end() -> None:
    nested: Any = 1
    for _ in range(5000):
        nested = [nested]
    assert "nested more than 100 deep" in failure("{{ a }}", a=nested)
    assert render("{{ b }}", a=nested, b=1) == "1"


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("a\nb {{ }\n", "prompt template, line 2: unexpected '}' in 'b {{ }'"),
        ("{% for x in y %}", "prompt template, line 1: Unexpected end of template"),
        (
            "a\n\n{{ x | wordwrap }}",
            "prompt template, line 3: No filter named 'wordwrap' in '{{ x | wordwrap }}'; there are abs, attr,",
        ),
        ("{% include 'other' %}", "prompt template, line 1: {% include %} is not supported"),
    ],
)
def test_syntax_errors_give_the_line(template: str, message: str) -> None:
    with pytest.raises(PromptError) as caught:
        PromptTemplate(template)
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{{ a + 'x' }}", "prompt template: TypeError: unsupported operand"),
        ("{{ 1 // 0 }}", "prompt template: ZeroDivisionError"),
        ("{{ [1] | map('nothing') | list }}", "prompt template: No filter named 'nothing'"),
        ("{{ ['x'] | map('upper') }}", "the template uses a list_iterator as a value; make it a list with `| list`"),
        ("{{ range }}", "the template uses a function as a value"),
        ("{{ d.x }}", "prompt template: 'dict object' has no attribute 'x'"),
    ],
)
def test_other_failures_are_the_rows(template: str, message: str) -> None:
    assert failure(template, a=1, d={}).startswith(message)


def test_reasons_are_short() -> None:
    assert len(failure("{{ a[b] }}", a={}, b="x" * 100_000)) < 400


def test_one_template_renders_in_many_threads() -> None:
    template = PromptTemplate("{% for i in range(n) %}{{ i }},{% endfor %}")
    with ThreadPoolExecutor(8) as pool:
        texts = list(pool.map(lambda n: template.render({"n": n}), range(200)))
    assert texts == ["".join(f"{i}," for i in range(n)) for n in range(200)]
