"""Task `generate`: what a row asks of the model, and the output rows that come of the answer.

The settings are the plan's: `prompt` (a template or messages) and `sampling`, in the names of vLLM's SamplingParams.
Where the rows are requests of OpenAI's Batch API, each brings both.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .errors import JobError, PromptError
from .openai_requests import CHAT, COLUMNS, COMPLETIONS, OPENAI_BATCH, read_request
from .rendering import Renderer
from .stop_strings import StopStrings
from .tokenizer import Tokenizer

_SAID = "said"  # the column that a request's own messages or prompt are rendered from


@dataclass(frozen=True)
class Prompt:
    """What is asked for one row."""

    text: str
    token_ids: tuple[int, ...]
    sampling: Mapping[str, Any] | None = None
    """How this row is sampled, where rows say that themselves; else as the job has it."""

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
        self._sampling: Mapping[str, Any] = settings["sampling"]
        self._endpoint: str | None = settings["prompt"].get(OPENAI_BATCH)
        said = {CHAT: {"messages": _SAID}, COMPLETIONS: {"template": f"{{{{ {_SAID} }}}}"}}
        self._renderer = Renderer(said[self._endpoint] if self._endpoint else settings["prompt"], tokenizer)
        self._new_watcher(self._sampling)  # one that can never match is refused now, not in the middle of a batch

    @property
    def columns(self) -> frozenset[str]:
        """The input columns that prompts are made of."""
        return COLUMNS if self._endpoint else self._renderer.columns

    def prepare(self, values: Mapping[str, Any]) -> Prompt:
        """The prompt of a row; PromptError says why it has none."""
        sampling = None
        if self._endpoint:
            said, sampling = read_request(values, self._endpoint, self._sampling)
            values = {_SAID: said}
            try:
                self._new_watcher(sampling)
            except JobError as error:
                raise PromptError(f"body.stop: {error}") from error
        text = self._renderer.render(values)
        if not text:
            raise PromptError("the prompt is empty")
        return Prompt(text, self._renderer.encode(text), sampling)

    def sequences(self, prompt: Prompt) -> int:
        """How many sequences a row keeps open."""
        return (prompt.sampling or self._sampling)["n"]

    def watch(self, prompt: Prompt) -> Callable[[], StopStrings] | None:
        """Makes what looks for the stop strings in one sample."""
        sampling = prompt.sampling or self._sampling
        return functools.partial(self._new_watcher, sampling) if sampling["stop"] else None

    def _new_watcher(self, sampling: Mapping[str, Any]) -> StopStrings:
        return StopStrings(self._tokenizer, tuple(sampling["stop"]), min_tokens=sampling["min_tokens"])

    def rows(self, prompt: Prompt, answers: Sequence[Any]) -> Iterator[dict[str, Any]]:
        """The columns of each sample. The one answer is a list of `engine.Generation`."""
        own = {"seed": prompt.sampling["seed"]} if prompt.sampling else {}
        for index, sample in enumerate(answers[0]):
            text, stop_reason = self._read(sample)
            yield {
                **own,
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
