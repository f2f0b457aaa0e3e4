"""Task `score`: how likely given text is, after a prompt or by itself.

With continuations, the prompt is their context. The two are tokenised together and split where the context ends, so the
tokens are those the model would have seen; spaces at the end of the context count to the continuation.

A whole text is scored behind the tokenizer's beginning-of-sequence token. Where a tokenizer writes none, nothing
stands before the first token of the text: it is not scored, and `token_count` counts those that are. The text itself is
written to the output only if the job includes prompts.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .errors import PromptError
from .prompts import PromptTemplate
from .rendering import Renderer
from .tokenizer import Tokenizer


@dataclass(frozen=True)
class Prompt:
    """What is scored for one row: texts, and for each a sequence of tokens and where in it the text starts."""

    text: str | None
    token_count: int
    continuations: tuple[str, ...]
    sequences: tuple[tuple[tuple[int, ...], int], ...]

    @property
    def sequence_lengths(self) -> tuple[int, ...]:
        """Of what the engine is asked, in tokens."""
        return tuple(len(tokens) for tokens, _ in self.sequences)

    @property
    def context_tokens(self) -> int:
        """The least context that scoring takes."""
        return max(len(tokens) for tokens, _ in self.sequences)


class Score:
    """How the rows of one job become sequences to score, and how their scores are written down."""

    def __init__(self, settings: Mapping[str, Any], tokenizer: Tokenizer) -> None:
        asked = settings["score"] or {}
        prompt: Mapping[str, Any] | None = settings["prompt"]
        continuations = list(asked.get("continuations") or [])
        if asked.get("text") is not None:
            prompt = {"template": asked["text"]}
        elif prompt is None:
            prompt = {"template": continuations.pop()}
        self._tokenizer = tokenizer
        self._renderer = Renderer(prompt, tokenizer)
        self._continuations = [PromptTemplate(t, f"continuation {i}") for i, t in enumerate(continuations)]
        self._token_logprobs = bool(asked.get("token_logprobs"))
        self._writes_text = bool(self._continuations) or settings["include_prompt"]

    @property
    def columns(self) -> frozenset[str]:
        """The input columns that texts are made of."""
        return self._renderer.columns.union(*(template.columns for template in self._continuations))

    def prepare(self, values: Mapping[str, Any]) -> Prompt:
        """What is scored of a row; PromptError says why nothing can be."""
        text = self._renderer.render(values)
        return self._after(text, values) if self._continuations else self._whole(text)

    def _whole(self, text: str) -> Prompt:
        tokens = self._renderer.encode(text)
        if not text or len(tokens) < 2:
            raise PromptError(f"nothing to score: the text {text!r:.60} has no token that another one precedes")
        return Prompt(None, 1, (text,), ((tokens, 1),))

    def _after(self, context: str, values: Mapping[str, Any]) -> Prompt:
        continuations = tuple(template.render(values) for template in self._continuations)
        sequences = []
        for index, continuation in enumerate(continuations):
            if not continuation:
                raise PromptError(f"continuation {index} is empty: there is nothing to score")
            before, after = self._tokenizer.encode_pair(
                context, continuation, add_special_tokens=self._renderer.adds_special_tokens
            )
            sequences.append(((*before, *after), len(before)))
        return Prompt(context, sequences[0][1], continuations, tuple(sequences))

    def sequences(self, prompt: Prompt) -> int:
        """How many sequences a row keeps open."""
        return len(prompt.sequences)

    def rows(self, prompt: Prompt, answers: Sequence[Any]) -> Iterator[dict[str, Any]]:
        """The columns of the record. There is one answer, an `engine.Score`, for each continuation."""
        logprobs = [math.fsum(answer.logprobs) for answer in answers]
        token_counts = [len(answer.logprobs) for answer in answers]
        per_token = [logprob / count for logprob, count in zip(logprobs, token_counts, strict=True)]
        sizes_bytes = [len(text.encode()) for text in prompt.continuations]
        is_whole = prompt.text is None
        yield {
            "continuations": prompt.continuations if self._writes_text else None,
            "logprob": logprobs,
            "token_count": token_counts,
            "is_greedy": [all(answer.is_greedy) for answer in answers],
            "token_logprobs": [answer.logprobs for answer in answers] if self._token_logprobs else None,
            "best_index": None if is_whole else logprobs.index(max(logprobs)),
            "logprob_per_token": per_token,
            "logprob_per_byte": [logprob / size for logprob, size in zip(logprobs, sizes_bytes, strict=True)],
            "perplexity": _exp(-per_token[0]) if is_whole else None,
        }


def _exp(x: float) -> float:
    try:
        return math.exp(x)
    except OverflowError:
        return math.inf
