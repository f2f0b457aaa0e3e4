"""No template reaches Python, and every template ends, soon, in the same way, and in bounded memory."""

from __future__ import annotations

import datetime
import time
import tracemalloc
from typing import Any

import pytest

from pipeline.budget import STEP_LIMIT
from pipeline.chat import ChatPrompt
from pipeline.errors import PromptError
from pipeline.prompts import PromptTemplate

ROW = {"x": "text", "n": 3, "items": [1, 2], "pairs": [{"a": 1}], "when": datetime.datetime(2024, 1, 2)}

ESCAPES = [
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ x['__class__'] }}",
    "{{ ''|attr('__class__') }}",
    "{{ pairs|map(attribute='a.__class__')|list }}",
    "{{ pairs|sort(attribute='__class__') }}",
    "{{ items|map('attr', '__class__')|list }}",
    "{{ '{0.__class__}'.format(x) }}",
    "{{ '{0[__class__]}'.format(x) }}",
    "{{ '{a.__class__}'.format_map({'a': x}) }}",
    "{{ (x ~ '{0.__class__}')['format'](x) }}",
    "{{ (['{0.__class__}']|map(attribute='format')|list)[0](x) }}",
    "{{ '%s' % x.__class__ }}",
    "{{ cycler.__init__.__globals__ }}",
    "{{ cycler(1).next.__globals__ }}",
    "{{ joiner.__init__.__globals__ }}",
    "{{ namespace.__init__.__globals__ }}",
    "{{ range.__globals__ }}",
    "{{ dict.__globals__ }}",
    "{{ dict.mro() }}",
    "{% set ns = namespace(__class__=1) %}",
    "{% set ns = namespace({'__class__': 1}) %}",
    "{% set ns = namespace() %}{% set ns.__class__ = x %}",
    "{% set ns = namespace() %}{{ ns.__init__.__globals__ }}",
    "{{ lipsum.__globals__ }}",
    "{{ self.__init__.__globals__ }}",
    "{{ self._TemplateReference__context }}",
    "{% macro m() %}{% endmacro %}{{ m._func.__globals__ }}",
    "{% macro m() %}{{ caller.__call__.__globals__ }}{% endmacro %}{% call m() %}{% endcall %}",
    "{% for i in items %}{{ loop._iterable }}{{ loop.__init__.__globals__ }}{% endfor %}",
    "{{ missing.__class__ }}",
    "{{ items.append(3) }}",
    "{{ items|attr('append') }}",
    "{{ pairs[0].update({'a': 2}) }}",
    "{{ n.to_bytes(2, 'big') }}",
    "{{ x.encode() }}",
    "{{ items }}{{ range }}",
    "{{ 'x'|random }}",
    "{% include '/etc/passwd' %}",
    "{% import '/etc/passwd' as p %}",
    "{% extends '/etc/passwd' %}",
    "{% block b %}{% endblock %}",
    "{% autoescape true %}{% endautoescape %}",
]

GROW = (
    "{{% set ns = namespace(v={start}, w={start}) %}}{{% for i in range(99) %}}{{% set ns.v = {step} %}}{{% endfor %}}"
)
BIG = "{% set a = 'a' * 9999999 %}{% set wide = '🎉' * 999999 %}"
ENDLESS = [
    # loops, with and without output
    "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "{% for i in range(99999) %}{% for j in range(99999) if false %}{% endfor %}{% endfor %}",
    "{% for i in range(99999) %}{% for j in range(99999) %}" + "x" * 9999 + "{% endfor %}{% endfor %}",
    "{% for i in range(99999) %}" + "{% set v = [1, 2, 3] %}" * 999 + "{% endfor %}",
    "{% for i in range(99999) %}{% set v = range(99999)|map('abs')|list %}{% endfor %}",
    "{% set ns = namespace() %}{% set ns.a = ns %}{{ ('{0' ~ '.a' * 3999999 ~ '}').format(ns) }}",
    "{% for i in range(99999) %}{{ range(99999)|select('odd')|first }}{% endfor %}",
    "{{ range(10**9)|list }}",
    # macros
    "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
    "{% macro m(k) %}{% if k %}{{ m(k - 1) }}{{ m(k - 1) }}{% endif %}{% endmacro %}{{ m(40) }}",
    "{% macro m(k) %}{{ caller() }}{% if k %}{% call m(k - 1) %}x{% endcall %}{% call m(k - 1) %}x{% endcall %}"
    "{% endif %}{% endmacro %}{% call m(40) %}x{% endcall %}",
    "{% macro m(v) %}{{ m([v, v]) }}{% endmacro %}{{ m(1) }}",
    "{% for i in [items] recursive %}{{ loop([i, i]) }}{% endfor %}",
    # syntax that is deeper than Python goes
    "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
    "{% for i in items %}" * 40 + "{% endfor %}" * 40,
    "{{ " + "9" * 5000 + " }}",
    # work on a large text, again and again
    BIG + "{% for i in range(99999) %}{% if a[1:] %}{% endif %}{% endfor %}",
    BIG + "{% for i in range(99999) %}{% if a == a[:-1] ~ 'b' %}{% endif %}{% endfor %}",
    BIG + "{% for i in range(99999) %}{% if 'b' in a %}{% endif %}{% endfor %}",
    BIG + "{% for i in range(99999) %}{% if a is lower %}{% endif %}{% endfor %}",
    BIG + "{% for i in range(99999) %}{% set v = a.upper() %}{% endfor %}",
    BIG + "{% for i in range(99999) %}{% set v = [x]|map(attribute=a)|list %}{% endfor %}",
    BIG + "{% for i in range(99999) %}{% set v = x|attr(a) %}{% endfor %}",
    BIG + "{% for i in range(99999) %}{% set v = x[a] is defined %}{% endfor %}",
    BIG + "{{ a.rfind('b' ~ a[:999999]) }}",
    BIG + "{{ a.strip('b' * 999999 ~ 'a') }}",
    BIG + "{{ a|trim('b' * 999999 ~ 'a') }}",
]

GROWING = [
    # constant text, in few steps
    "{% for i in range(99999) %}" + "x" * 9999 + "{% endfor %}",
    "{% macro m() %}{% for i in range(99999) %}" + "x" * 9999 + "{% endfor %}{% endmacro %}{% set v = m() %}",
    # repeated text and lists
    "{{ 'a' * 10**10 }}",
    "{{ 10**10 * 'a' }}",
    "{{ [0] * 10**10 }}",
    "{{ 2 ** (10 ** 9) }}",
    "{{ 10 ** 4000 }}",
    GROW.format(start="'ab'", step="ns.v + ns.v"),
    GROW.format(start="'ab'", step="ns.v ~ ns.v"),
    GROW.format(start="'ab'", step="ns.v * 2"),
    GROW.format(start="'ab'", step="ns.v|replace('ab', 'abab')"),
    GROW.format(start="'ab'", step="'{0}{0}'.format(ns.v)"),
    GROW.format(start="'ab'", step="'%s%s' % (ns.v, ns.v)"),
    GROW.format(start="'ab'", step="[ns.v, ns.v]|join"),
    GROW.format(start="[1]", step="ns.v + ns.v"),
    GROW.format(start="3", step="ns.v * ns.v"),
    GROW.format(start="'a'", step="ns.v ~ ns.v") + "{{ ns.v }}",
    "{% set ns = namespace(v='ab') %}{% for i in range(99) %}{% set v %}{{ ns.v }}{{ ns.v }}{% endset %}"
    "{% set ns.v = v %}{% endfor %}",
    # lists that share their insides: 2**99 items to whoever reads them
    GROW.format(start="[1]", step="[ns.v, ns.v]") + "{{ ns.v }}",
    GROW.format(start="[1]", step="[ns.v, ns.v]") + "{{ ns.v|tojson }}",
    GROW.format(start="[1]", step="[ns.v, ns.v]") + "{{ [ns.v]|join }}",
    GROW.format(start="[1]", step="[ns.v, ns.v]") + "{{ '%s' % ns.v }}",
    GROW.format(start="[1]", step="[ns.v, ns.v]") + "{{ '{!r}'.format(ns.v) }}",
    GROW.format(start="[1]", step="[ns.v, ns.v]") + "{{ 'a' ~ ns.v }}",
    GROW.format(start="[1]", step="[ns.v, ns.v]") + "{{ ns.v in [1] }}",
    GROW.format(start="[1]", step="[ns.v, ns.v]") + "{{ [1].index(ns.v) }}",
    GROW.format(start="[1]", step="[ns.v, ns.v]") + "{{ ns.v is eq ns.w }}",
    GROW.format(start="[1]", step="[ns.v, ns.v]") + "{{ when.strftime(ns.v) }}",
    GROW.format(start="[1]", step="{1: ns.v, 2: ns.v}") + "{{ ns.v }}",
    GROW.format(start="(1,)", step="(ns.v, ns.v)") + "{{ {ns.v: 1}|length }}",
    GROW.format(start="(1,)", step="(ns.v, ns.v)") + "{{ {1: 1}[ns.v] }}",
    GROW.format(start="(1,)", step="(ns.v, ns.v)") + "{{ {1: 1}.get(ns.v) }}",
    GROW.format(start="(1,)", step="(ns.v, ns.v)") + "{{ [ns.v]|unique|list }}",
    GROW.format(start="(1,)", step="(ns.v, ns.v)") + "{{ [ns.v, ns.v]|sort }}",
    GROW.replace("range(99)", "range(9999)").format(start="[1]", step="[ns.v]") + "{{ ns.v }}",
    # padding and formats
    "{{ 'x'.ljust(10**10) }}",
    "{{ 'x'.rjust(10**10) }}",
    "{{ 'x'.zfill(10**10) }}",
    "{{ 'x'.center(10**10) }}",
    "{{ 'x'|center(10**10) }}",
    "{{ 'x\\nx'|indent(10**10) }}",
    "{{ ('x\\n' * 99999)|indent(99999) }}",
    "{{ 'x'|wordwrap(10**10) }}",
    "{{ [1]|batch(10**10, 0)|list }}",
    "{{ [1]|slice(10**10)|list }}",
    "{{ '%1000000000d' % 1 }}",
    "{{ '%.1000000000f' % 1 }}",
    "{{ '%*d' % (1000000000, 1) }}",
    "{{ '%(a)1000000000d' % {'a': 1} }}",
    "{{ '%((a))1000000000d' % {'(a)': 1} }}",
    "{{ ('%(a)s' * 9999) % {'a': 'x' * 9999} }}",
    "{{ '%1000000000d'|format(1) }}",
    "{{ '%1000000000d' is odd }}",
    "{{ '%1000000000d' is divisibleby(3) }}",
    "{{ 'x'|round(9, 'ceil') }}",
    "{{ '{:1000000000}'.format(1) }}",
    "{{ '{:{}}'.format(1, 1000000000) }}",
    "{{ '{:.1000000000f}'.format(1) }}",
    "{{ ('{0}' * 9999).format('x' * 9999) }}",
    "{{ 1|round(10**9, 'ceil') }}",
    "{{ 1|round(0 - 10**9) }}",
    "{{ [1]|tojson(indent=10**10) }}",
    "{{ [1, 2]|tojson(separators=('x' * 99, ':')) }}",
    "{{ ('1' * 5000)|int }}",
    "{{ when.strftime('%c' * 999999) }}",
    "{{ '{0:%c%c%c%c}'.format(when) * 999999 }}",
    # joins, splits and lists of characters
    "{{ range(99999)|join('x' * 99999) }}",
    "{{ ('x' * 99999).join(range(99999)|map('string')) }}",
    BIG + "{{ (a ~ wide).split('a')|length }}",
    BIG + "{{ wide|list }}",
    BIG + "{{ cycler(*a) }}",
    BIG + "{{ [x]|map('default', *a)|list }}",
    BIG + "{{ dict(**{a: a}) ~ dict(**{a: a}) ~ a ~ a ~ a }}",
    "{{ [[1]]|sum(start=[]) }}",
]  # fmt: skip


def outcome(template: str, row: dict[str, Any]) -> str:
    with pytest.raises(PromptError) as caught:
        PromptTemplate(template).render(row)
    return str(caught.value)


@pytest.mark.parametrize("template", ESCAPES)
def test_no_way_to_python(template: str) -> None:
    message = outcome(template, ROW)
    assert " at 0x" not in message
    assert outcome(template, ROW) == message


@pytest.mark.parametrize("template", ESCAPES)
def test_no_way_to_python_from_a_checkpoint(template: str) -> None:
    """Chat templates run where undefined names print nothing; what is forbidden is an error there too."""
    row = "{% set x = 'text' %}{% set n = 3 %}{% set items = [1, 2] %}{% set pairs = [{'a': 1}] %}"
    with pytest.raises(PromptError):
        ChatPrompt("messages", row + template).render({"messages": [{"role": "user", "content": "c"}]})


@pytest.mark.parametrize("template", [*ENDLESS, *GROWING])
def test_every_template_ends(template: str) -> None:
    started = time.process_time()
    message = outcome(template, ROW)
    assert time.process_time() - started < 10  # about a second; a runaway takes hours
    assert outcome(template, ROW) == message


@pytest.mark.parametrize("template", GROWING)
def test_memory_is_bounded(template: str) -> None:
    tracemalloc.start()
    try:
        outcome(template, ROW)
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak_bytes < 256 * 2**20


def test_depth_is_counted_from_the_template_not_from_who_calls() -> None:
    """Python's own recursion limit would let a template do less the deeper its caller is."""
    deepest = "{% macro m(k) %}{{ m(k - 1) if k else 'end' }}{% endmacro %}{{ m(49) }}"

    def from_below(frames: int, template: str) -> str:
        return from_below(frames - 1, template) if frames else PromptTemplate(template).render({})

    assert from_below(0, deepest) == from_below(300, deepest) == "end"
    for frames in (0, 300):
        with pytest.raises(PromptError, match="nested more than 50 deep"):
            from_below(frames, deepest.replace("49", "50"))


def test_the_limit_is_far_from_honest_templates() -> None:
    """A prompt of a megabyte, and a template with ten thousand turns through a loop, fit."""
    text = "words and more words " * 50_000
    template = PromptTemplate(
        "{{ text | trim }}{% for i in range(10000) %}{{ loop.index }}: {{ texts[i % 3] }}\n{% endfor %}"
    )
    prompt = template.render({"text": text, "texts": ["a", "b", "c"]})
    assert prompt.startswith(text.strip())
    assert prompt.endswith("10000: a\n")


def test_a_failed_render_leaves_the_next_one_its_whole_budget() -> None:
    half = PromptTemplate("{% for i in range(n) %}{{ i }}{% endfor %}")
    assert STEP_LIMIT // 4 > 50_000
    for _ in range(3):
        assert half.render({"n": 50_000}).endswith("49999")
        with pytest.raises(PromptError):
            PromptTemplate("{{ 'a' * 10**10 }}").render({})
