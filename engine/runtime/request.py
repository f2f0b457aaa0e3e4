"""What is asked of the engine and what it answers: token ids in, token ids and log-probabilities out.

The engine knows no text. Whoever needs stop strings hands in a `Watcher`, which looks at the tokens of one sample as
they arrive and says where to cut.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, runtime_checkable

from engine.compilation.options import MAX_STOP_TOKEN_IDS
from engine.errors import RequestError

MAX_LOGPROBS = 20
MAX_SAMPLES = 256


@runtime_checkable
class Watcher(Protocol):
    """Watches one sample being generated."""

    def feed(self, token_ids: Sequence[int], /) -> int | None:
        """Takes the newly generated ids, in order; returns how many tokens of the whole sample to keep, or None.

        The answer must not depend on how the sample is cut into calls."""
        ...


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen, and when to stop. Names and meanings are those of vLLM's SamplingParams.

    Filters apply in the order temperature, top_k, top_p, min_p, each to the distribution the one before it left,
    as Hugging Face transformers does. Ties at a threshold are kept.
    """

    temperature: float = 0.0
    """0 takes the most likely token; else logits are divided by it before filtering and sampling."""
    top_k: int = 0
    """Keep the k most likely tokens; 0 keeps all."""
    top_p: float = 1.0
    """Keep the smallest set of most likely tokens whose probability reaches this; 1 keeps all."""
    min_p: float = 0.0
    """Keep tokens at least this fraction as likely as the most likely one; 0 keeps all."""
    max_tokens: int = 64
    min_tokens: int = 0
    """No end-of-sequence or stop token is chosen before this many tokens."""
    stop_token_ids: tuple[int, ...] = ()
    """Tokens that end the sample, besides the checkpoint's end-of-sequence tokens. The token is part of the answer."""
    ignore_eos: bool = False
    """Go on past the checkpoint's end-of-sequence tokens; stop_token_ids still stop."""
    logprobs: int = 0
    """Also return the log-probabilities of this many most likely tokens at every position (0: of the chosen alone)."""

    def __post_init__(self) -> None:
        def check(ok: bool, field: str, rule: str) -> None:
            if not ok:
                raise RequestError(f"sampling.{field} must be {rule}; got {getattr(self, field)!r}")

        check(math.isfinite(self.temperature) and self.temperature >= 0, "temperature", "a number of at least 0")
        check(self.top_k >= 0, "top_k", "0 (off) or a positive number of tokens")
        check(0 < self.top_p <= 1, "top_p", "above 0 and at most 1 (off)")
        check(0 <= self.min_p <= 1, "min_p", "between 0 (off) and 1")
        check(self.max_tokens >= 1, "max_tokens", "at least 1")
        check(
            0 <= self.min_tokens <= self.max_tokens,
            "min_tokens",
            f"between 0 and max_tokens ({self.max_tokens})",
        )
        check(
            len(self.stop_token_ids) <= MAX_STOP_TOKEN_IDS,
            "stop_token_ids",
            f"at most {MAX_STOP_TOKEN_IDS} token ids",
        )
        check(
            all(token >= 0 for token in self.stop_token_ids),
            "stop_token_ids",
            "a list of token ids, none negative",
        )
        check(0 <= self.logprobs <= MAX_LOGPROBS, "logprobs", f"between 0 and {MAX_LOGPROBS}")


@dataclass(frozen=True)
class GenerateRequest:
    """One prompt, `samples` continuations of it.

    The random key of every token is fold_in(seed, record, sample index, position): `record` is a 64-bit identity of the
    input row, so a row's samples are its own, whatever else is in the batch.
    """

    prompt: tuple[int, ...]
    sampling: Sampling = Sampling()
    seed: int = 0
    record: int = 0
    samples: int = 1
    watch: Callable[[], Watcher] | None = None
    """Makes the watcher of one sample."""

    def __post_init__(self) -> None:
        if not self.prompt:
            raise RequestError("the prompt is empty: a model needs at least one token to continue")
        if not 1 <= self.samples <= MAX_SAMPLES:
            raise RequestError(f"samples must be between 1 and {MAX_SAMPLES}; got {self.samples}")


@dataclass(frozen=True)
class Generation:
    """One sample. `token_ids` ends with the token that stopped it, if one did."""

    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    """Of each token in `token_ids`, natural log, under the model's own distribution: before temperature, filters."""
    finish_reason: Literal["stop", "length"]
    stop_token: int | None = None
    """The token of `stop_token_ids` that ended the sample; None for the end of sequence, a watcher or the length."""
    top_logprobs: tuple[tuple[tuple[int, float], ...], ...] | None = None
    """Per position the most likely (token id, log-probability) pairs, most likely first; None unless asked for."""
    watcher: Any = None
    """The request's watcher for this sample, after it has seen every token."""


@dataclass(frozen=True)
class ScoreRequest:
    """log P(tokens[start:] | tokens[:start])."""

    tokens: tuple[int, ...]
    start: int = 1

    def __post_init__(self) -> None:
        if not 1 <= self.start < len(self.tokens):
            raise RequestError(
                f"nothing to score: {len(self.tokens)} tokens with scoring from position {self.start}; the first token "
                "has no context, so start must be at least 1 and leave at least one token"
            )


@dataclass(frozen=True)
class Score:
    """Teacher-forced log-probabilities of tokens[start:], natural log, and whether each was the most likely token."""

    logprobs: tuple[float, ...]
    is_greedy: tuple[bool, ...]


Request = GenerateRequest | ScoreRequest
