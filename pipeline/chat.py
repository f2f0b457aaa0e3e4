"""A chat prompt: messages, written out by the checkpoint's own chat template.

    ChatPrompt([{"role": "user", "content": "{{ question }}"}], tokenizer.chat_template, tokenizer.special_tokens)

The messages are templates over the row, or the name of a column that holds a list of messages. The chat template comes
with the checkpoint, so it runs in the same sandbox and on the same budget; what it finds there is what Hugging Face
transformers gives it (`raise_exception`, `tojson`, loop controls, the special tokens, undefined names that are false
and print nothing), and the prompt ends where the assistant's answer begins. One thing differs: there is no
`strftime_now`, because the same job must give the same prompts tomorrow. Templates that test for it use a date of their
own; for the others, give a fixed `date`.
"""

from __future__ import annotations

import datetime
import functools
from collections.abc import Mapping, Sequence
from typing import Any

from jinja2.runtime import Undefined

from . import budget
from .errors import PromptError
from .prompts import PromptTemplate, plain
from .sandbox import Sandbox, compile_template, render_template

_CALLED = "chat template"
_NO_DATE = "the chat template asks for today's date, which changes from day to day; give a fixed one, prompt.date"


class ChatPrompt:
    """Messages of a row -> the text that the checkpoint answers; `columns` are the names that it takes from a row."""

    def __init__(
        self,
        messages: Sequence[Mapping[str, str]] | str,
        chat_template: str,
        special_tokens: Mapping[str, str] | None = None,
        date: datetime.date | None = None,
    ) -> None:
        self._column = messages if isinstance(messages, str) else None
        self._messages = [] if isinstance(messages, str) else [_message_template(m, i) for i, m in enumerate(messages)]
        if not self._column and not self._messages:
            raise PromptError("a chat prompt needs at least one message")
        self.columns = frozenset({self._column} if self._column else ()).union(*(t.columns for _, t in self._messages))
        self._template, _ = compile_template(_sandbox(), chat_template, _CALLED)
        self._variables = {
            **(special_tokens or {}),
            "tools": None,
            "documents": None,
            "add_generation_prompt": True,
            "strftime_now": functools.partial(_date_text, date) if date else Undefined(_NO_DATE),
        }

    def render(self, values: Mapping[str, Any]) -> str:
        """The prompt of one row; PromptError says why a row has none."""
        if self._column:
            messages = _messages_of(values, self._column)
        else:
            messages = [{"role": role, "content": template.render(values)} for role, template in self._messages]
        return render_template(_sandbox(), self._template, {**self._variables, "messages": messages}, _CALLED)


@functools.cache
def _sandbox() -> Sandbox:
    sandbox = Sandbox(undefined=Undefined, null_text="None", trim_blocks=True, lstrip_blocks=True)
    sandbox.globals["raise_exception"] = _raise_exception
    return sandbox


def _message_template(message: Mapping[str, str], index: int) -> tuple[str, PromptTemplate]:
    if set(message) != {"role", "content"}:
        keys = ", ".join(map(repr, message)) or "nothing"
        raise PromptError(f"message {index} has {keys}; it needs 'role' and 'content', and nothing else")
    return message["role"], PromptTemplate(message["content"], f"template of message {index}")


def _messages_of(values: Mapping[str, Any], column: str) -> list[dict[str, Any]]:
    """The messages that a column holds. Null entries count as absent, as transformers has it."""
    messages = plain(values.get(column), f"column {column!r}", mark_nulls=False)
    if not isinstance(messages, list) or not messages:
        raise PromptError(f"column {column!r} must hold a list of messages, at least one, not {_kind(messages)}")
    for i, message in enumerate(messages):
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            where = f"column {column!r}, message {i}"
            raise PromptError(f"{where}: a message is an object with a 'role', not {_kind(message)}")
    return [{key: value for key, value in message.items() if value is not None} for message in messages]


def _kind(value: Any) -> str:
    if value is None:
        return "null"
    return "an empty list" if value == [] else f"a {type(value).__name__}"


def _raise_exception(message: Any) -> None:
    raise PromptError(f"the chat template refuses the messages: {budget.read(message)}")


def _date_text(date: datetime.date, pattern: str) -> str:
    budget.date_format(pattern)
    return date.strftime(pattern)
