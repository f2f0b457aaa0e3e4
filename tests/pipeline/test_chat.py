"""Messages become the checkpoint's own prompt; the oracle for the rendering itself is in tests/oracles."""

from __future__ import annotations

import datetime
import re
from typing import Any

import pytest

from pipeline.chat import ChatPrompt
from pipeline.errors import PromptError
from tests.pipeline.tiny_tokenizers import CHAT_TEMPLATE

TOKENS = {"bos_token": "<s>", "eos_token": "</s>"}
QUESTION = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "{{ question }} "}]


def chat(template: str, **values: Any) -> str:
    return ChatPrompt("messages", template, TOKENS).render(values or {"messages": [{"role": "user", "content": "hi"}]})


def test_message_templates_over_the_row() -> None:
    prompt = ChatPrompt(QUESTION, CHAT_TEMPLATE, TOKENS)
    assert prompt.columns == {"question"}
    assert (
        prompt.render({"question": "東?", "more": 1}) == "<s><|system|>Be brief.<|end|><|user|>東?<|end|><|assistant|>"
    )


def test_messages_of_a_column() -> None:
    prompt = ChatPrompt("turns", CHAT_TEMPLATE, TOKENS)
    assert prompt.columns == {"turns"}
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "{{ b }}"}]
    assert prompt.render({"turns": turns}) == "<s><|user|>a<|end|><|assistant|>{{ b }}<|end|><|assistant|>"


def test_null_entries_of_a_message_are_absent() -> None:
    template = "{{ messages[0] | tojson }}"
    message = {"role": "user", "content": "x", "tool_calls": None, "meta": {"k": None}}
    assert chat(template, messages=[message]) == '{"role": "user", "content": "x", "meta": {"k": null}}'


def test_nulls_of_the_row_are_named() -> None:
    with pytest.raises(PromptError, match=r"^template of message 1: column 'question' is null$"):
        ChatPrompt(QUESTION, CHAT_TEMPLATE, TOKENS).render({"question": None})


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        (None, "column 'messages' must hold a list of messages, at least one, not null"),
        ([], "not an empty list"),
        ("hi", "not a str"),
        (["hi"], "message 0: a message is an object with a 'role', not a str"),
        ([{"content": "hi"}], "message 0: a message is an object with a 'role', not a dict"),
        ([{"role": 3}], "message 0: a message is an object with a 'role'"),
    ],
)
def test_a_column_that_holds_no_messages(messages: Any, message: str) -> None:
    with pytest.raises(PromptError, match=re.escape(message)):
        chat(CHAT_TEMPLATE, messages=messages)


def test_a_row_without_the_column() -> None:
    with pytest.raises(PromptError, match=r"column 'messages' must hold a list of messages, at least one, not null"):
        chat(CHAT_TEMPLATE, other=1)


@pytest.mark.parametrize("messages", [[], [{"role": "user"}], [{"role": "user", "content": "x", "name": "y"}]])
def test_message_templates_of_the_wrong_form(messages: Any) -> None:
    with pytest.raises(PromptError, match=r"at least one message|needs 'role' and 'content'"):
        ChatPrompt(messages, CHAT_TEMPLATE)


def test_the_template_may_refuse_messages() -> None:
    with pytest.raises(PromptError, match=r"^the chat template refuses the messages: no user here$"):
        chat("{{ raise_exception('no ' ~ messages[0].role ~ ' here') }}")


def test_dates_are_fixed_or_absent() -> None:
    template = "{% if strftime_now is defined %}{{ strftime_now('%d %b %Y') }}{% else %}undated{% endif %}"
    messages = [{"role": "user", "content": "x"}]
    assert chat(template) == "undated"
    assert ChatPrompt(messages, template, date=datetime.date(2024, 7, 26)).render({}) == "26 Jul 2024"
    with pytest.raises(PromptError, match=r"asks for today's date.*prompt\.date"):
        chat("{{ strftime_now('%Y') }}")


def test_a_template_that_does_not_compile_or_end() -> None:
    with pytest.raises(PromptError, match=r"^chat template, line 2: unexpected '}'"):
        chat("a\n{{ }")
    with pytest.raises(PromptError, match="does not end within"):
        chat("{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}")


def test_undefined_names_are_false_and_print_nothing() -> None:
    assert chat("[{{ tools }}|{{ nothing }}|{% if nothing %}x{% endif %}]") == "[None||]"


def test_marks_of_the_assistants_words_change_nothing() -> None:
    assert chat("a{% generation %} {{ messages[0].content }}{% endgeneration %}") == "a hi"
