"""Generate requests in flight: the samples of a prompt, and each one in its slot."""

from __future__ import annotations

from concurrent.futures import Future
from dataclasses import dataclass, field

from engine.runtime.request import GenerateRequest, Generation, Watcher


@dataclass(eq=False)
class Group:
    """A GenerateRequest in flight: all samples of one prompt."""

    request: GenerateRequest
    max_tokens: int
    """The request's own, or what the longest length leaves after its prompt."""
    future: Future[list[Generation]]
    started: int = 0
    finished: dict[int, Generation] = field(default_factory=dict)
    part: int = 0
    """Of the slots; where the first sample started."""
    prompt_pages: list[int] = field(default_factory=list)
    """Held from the first sample's start to the last one's, where pages are shared."""

    @property
    def prefilled(self) -> int:
        """Positions that prefill fills; the last prompt token is decode's first input."""
        return len(self.request.prompt) - 1


@dataclass(eq=False)
class Sample:
    """One sample in a slot."""

    group: Group
    index: int
    slot: int
    pages: list[int]
    watcher: Watcher | None
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    top_logprobs: list[tuple[tuple[int, float], ...]] = field(default_factory=list)
