"""Chat prompts equal transformers' apply_chat_template, for templates with every construct that published ones use."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.chat import ChatPrompt
from pipeline.errors import PromptError
from pipeline.tokenizer import Tokenizer
from tests.pipeline import tiny_tokenizers

transformers = pytest.importorskip(
    "transformers", reason="the oracle is transformers (pip install 'penstock[oracles]')"
)

TEMPLATES = {
    "plain": tiny_tokenizers.CHAT_TEMPLATE,
    "system message set apart, turns checked, slices, whitespace control": """
{%- if messages[0]['role'] == 'system' -%}
    {%- set system_message = messages[0]['content'] | trim -%}
    {%- set loop_messages = messages[1:] -%}
{%- else -%}
    {%- set system_message = false -%}
    {%- set loop_messages = messages -%}
{%- endif -%}
{{- bos_token }}
{%- for message in loop_messages %}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
        {{- raise_exception('Roles must alternate user/assistant') }}
    {%- endif %}
    {%- if loop.index0 == 0 and system_message %}
        {%- set content = '<<SYS>>\\n' + system_message + '\\n<</SYS>>\\n\\n' + message['content'] %}
    {%- else %}
        {%- set content = message.content %}
    {%- endif %}
    {%- if message.role == 'user' %}
        {{- '[INST] ' ~ content.strip() ~ ' [/INST]' }}
    {%- else %}
        {{- ' ' ~ content | trim ~ ' ' ~ eos_token }}
    {%- endif %}
{%- endfor %}""",
    "a date if there is one, undefined names, tojson, namespace, break and continue": """
{% if date_string is not defined %}
    {% set date_string = '26 Jul 2024' %}
{% endif %}
{% set ns = namespace(last_user=-1, thinking=enable_thinking | default(true)) %}
{% for message in messages %}
    {% if message.role == 'user' %}{% set ns.last_user = loop.index0 %}{% endif %}
{% endfor %}
Today: {{ date_string }} tools: {{ tools | tojson }} {% if tools %}never{% endif %} {{ missing }}|{{ documents }}|
{% for message in messages %}
    {%- if message.role == 'system' and not loop.first %}{% continue %}{% endif %}
    {%- if loop.index0 > 4 %}{% break %}{% endif %}
    <|{{ message.role | upper }}|>{{ loop.index0 == ns.last_user }}
    {{ message | tojson(indent=2) }} {{ message.tool_calls is defined }} {{ message.get('name', 'none') }}
    {% if 'a' in message.content %}{{ message.content.split('a')[-1].lstrip('\\n') }}{% endif %}
    {{ message.content | replace('o', '0') | length }} {{ (message.content | list)[::-1] | join('-') }}
{% endfor %}
{{ messages | map(attribute='role') | unique | sort | join(', ') }}
{{ messages | selectattr('role', 'equalto', 'user') | list | length }}
{{ messages | rejectattr('role', 'in', ['user']) | first | default('x') }}
{% if add_generation_prompt %}{{ '<|assistant|>\\n' if ns.thinking else '' }}{% endif %}
""",
    "macros, call blocks, filters as blocks, recursion, generation marks": """
{%- macro turn(role, content='', extra={}) -%}
<start>{{ role }}{% for key, value in extra.items() %} {{ key }}={{ value }}{% endfor %}
{{ content }}{{ caller() if caller else '' }}<end>
{% endmacro -%}
{%- for message in messages -%}
    {%- set role = {'assistant': 'model'}.get(message.role, message.role) -%}
    {%- if role == 'model' -%}
        {% generation %}{{ turn(role, message.content | capitalize) }}{% endgeneration %}
    {%- else -%}
        {%- call turn(role, extra=dict(n=loop.index, last=loop.last, of=loop.length)) -%}
            {{ message.content | title }}
        {%- endcall -%}
    {%- endif -%}
{%- endfor -%}
{% filter upper %}{{ messages[-1].content[:5] }}{% endfilter %}
{% set shout %}{{ messages[0].content }}!{% endset %}
{{ shout | wordcount }} {{ '%s-%03d' | format(shout, 7) }} {{ '{:>5}|{}'.format(1, shout) }}
{% for item in [1, [2, [3]]] recursive %}{{ loop(item) if item is iterable else item }}{{ loop.depth }}{% endfor %}
{{ 7 // 2 }} {{ 2 ** 8 }} {{ 7 / 2 }} {{ [1, 2] + [3] }} {{ 'ab' * 2 }} {{ -3 | abs }} {{ 3.7 | round | int }}
{{ none }} {{ (1, 'x') }} {{ {'k': 1} | items | list }}
{% for item in messages if item.content %}
    {{ loop.cycle('odd', 'even') }} {{ loop.previtem is defined }} {{ loop.revindex }}
{% else %}nobody{% endfor %}""",
}
CONTENT = st.text(st.sampled_from("abo \n\t<|>/{}é東%\"'") | st.characters(codec="utf-8"), max_size=12)
MESSAGES = st.lists(
    st.fixed_dictionaries(
        {"role": st.sampled_from(["user", "assistant", "system"]), "content": CONTENT},
        optional={"name": CONTENT | st.none()},
    ),
    min_size=1,
    max_size=6,
)
ALTERNATING = st.lists(CONTENT, min_size=1, max_size=5).map(
    lambda contents: [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(contents)]
)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_tokenizers.save_byte_level(tmp_path_factory.mktemp("checkpoint"))


@pytest.mark.parametrize("name", TEMPLATES)
def test_rendering(checkpoint: Path, name: str) -> None:
    template = TEMPLATES[name]
    theirs = transformers.AutoTokenizer.from_pretrained(checkpoint)
    tokenizer = Tokenizer.load(str(checkpoint))
    ours = ChatPrompt("messages", template, tokenizer.special_tokens)
    rendered = 0

    @settings(max_examples=150, deadline=None)
    @given(MESSAGES | ALTERNATING)
    def equal(messages: list[dict[str, Any]]) -> None:
        nonlocal rendered
        try:
            expected = theirs.apply_chat_template(
                messages, chat_template=template, tokenize=False, add_generation_prompt=True
            )
        except Exception as e:  # whatever it is there, it is a PromptError here
            with pytest.raises(PromptError, match=str(e) if "Roles" in str(e) else ""):
                ours.render({"messages": messages})
        else:
            assert ours.render({"messages": messages}) == expected
            rendered += 1

    equal()
    assert rendered >= 50


def test_tokens(checkpoint: Path) -> None:
    """The template writes its own bos; none is added."""
    theirs = transformers.AutoTokenizer.from_pretrained(checkpoint)
    tokenizer = Tokenizer.load(str(checkpoint))
    assert tokenizer.chat_template
    messages = [{"role": "user", "content": "Is {{ animal }} lazy?"}]
    text = ChatPrompt(messages, tokenizer.chat_template, tokenizer.special_tokens).render({"animal": "the dog"})
    rendered = [{"role": "user", "content": "Is the dog lazy?"}]
    expected = theirs.apply_chat_template(rendered, add_generation_prompt=True, return_dict=False)
    assert tokenizer.encode(text, add_special_tokens=False) == expected
