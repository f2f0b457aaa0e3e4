"""A row's prompt as text and as tokens: what the `prompt` of a job means for one checkpoint.

A plain template is tokenised as a text of its own, with the special tokens that the tokenizer puts around one. A chat
template writes its special tokens itself, so none are added.
"""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from typing import Any

from .chat import ChatPrompt
from .errors import JobError
from .prompts import PromptTemplate
from .tokenizer import Tokenizer


class Renderer:
    """`prompt` is what the job says: {"template": ...} or {"messages": ..., "date": ...}."""

    def __init__(self, prompt: Mapping[str, Any], tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self.adds_special_tokens = "template" in prompt
        if self.adds_special_tokens:
            self._template = PromptTemplate(prompt["template"])
        elif tokenizer.chat_template is None:
            raise JobError("prompt.messages: the checkpoint has no chat template; use prompt.template instead")
        else:
            date = datetime.date.fromisoformat(prompt["date"]) if "date" in prompt else None
            self._template = ChatPrompt(prompt["messages"], tokenizer.chat_template, tokenizer.special_tokens, date)

    @property
    def columns(self) -> frozenset[str]:
        """The input columns that prompts are made of."""
        return self._template.columns

    def render(self, values: Mapping[str, Any]) -> str:
        """The text of a row; PromptError says why it has none."""
        return self._template.render(values)

    def encode(self, text: str) -> tuple[int, ...]:
        """The tokens of a rendered text."""
        return tuple(self._tokenizer.encode(text, add_special_tokens=self.adds_special_tokens))
