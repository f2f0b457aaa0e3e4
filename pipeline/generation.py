"""Task `generate`: what a row asks of the model, and the output rows that come of the answer.

The settings are the plan's: `prompt` (a template or messages) and `sampling`, in the names of vLLM's SamplingParams.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .errors import PromptError
from .rendering import Renderer
from .stop_strings import StopStrings
from .tokenizer import Tokenizer


@dataclass(frozen=True)
class Prompt:
    """What is asked for one row."""

    text: str
    token_ids: tuple[int, ...]

    @property
    def token_count(self) -> int:
        return len(self.token_ids)

    @property
    def sequence_lengths(self) -> tuple[int, ...]:
        """Of what the engine is asked, in tokens."""
        return (self.token_count,)

    @property
    def context_tokens(self) -> int:
        """The least context that an answer takes."""
        return len(self.token_ids) + 1


class Generate:
    """How the rows of one job are prompted, and how their samples are written down."""

    def __init__(self, settings: Mapping[str, Any], tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._renderer = Renderer(settings["prompt"], tokenizer)
        sampling = settings["sampling"]
        self._stops, self._min_tokens = tuple(sampling["stop"]), sampling["min_tokens"]
        self._new_watcher()  # one that can never match is refused now, not in the middle of a batch
        self.sequences_per_record: int = sampling["n"]

    @property
    def columns(self) -> frozenset[str]:
        """The input columns that prompts are made of."""
        return self._renderer.columns

    def prepare(self, values: Mapping[str, Any]) -> Prompt:
        """The prompt of a row; PromptError says why it has none."""
        text = self._renderer.render(values)
        if not text:
            raise PromptError("the prompt is empty")
        return Prompt(text, self._renderer.encode(text))

    @property
    def watch(self) -> Callable[[], StopStrings] | None:
        """Makes what looks for the stop strings in one sample."""
        return self._new_watcher if self._stops else None

    def _new_watcher(self) -> StopStrings:
        return StopStrings(self._tokenizer, self._stops, min_tokens=self._min_tokens)

    def rows(self, prompt: Prompt, answers: Sequence[Any]) -> Iterator[dict[str, Any]]:
        """The columns of each sample. The one answer is a list of `engine.Generation`."""
        for index, sample in enumerate(answers[0]):
            text, stop_reason = self._read(sample)
            yield {
                "sample_index": index,
                "text": text,
                "token_ids": sample.token_ids,
                "completion_token_count": len(sample.token_ids),
                "finish_reason": sample.finish_reason,
                "stop_reason": stop_reason,
                "logprobs": sample.logprobs,
                "cumulative_logprob": math.fsum(sample.logprobs),
                "top_logprobs": _top_logprobs(sample),
            }

    def _read(self, sample: Any) -> tuple[str, str | None]:
        """The text of a sample without what stopped it, and what that was: a string, or a token asked for."""
        if sample.watcher and sample.watcher.matched is not None:
            return sample.watcher.text, sample.watcher.matched
        stopped = sample.finish_reason == "stop"
        text = self._tokenizer.decode(sample.token_ids[:-1] if stopped else sample.token_ids)
        return text, None if sample.stop_token is None else str(sample.stop_token)


def _top_logprobs(sample: Any) -> list[list[dict[str, Any]]] | None:
    if sample.top_logprobs is None:
        return None
    return [
        [{"token_id": token_id, "logprob": logprob} for token_id, logprob in position]
        for position in sample.top_logprobs
    ]
