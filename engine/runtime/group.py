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
    """Of `to_generate`."""
    finished: dict[int, Generation] = field(default_factory=dict)
    is_counted: bool = False
    """Whether the prompt is in the counters."""
    bucket: int = 0
    """That its prompt is prefilled in; the batcher's."""
    part: int = 0
    """Of the slots; where the first sample started."""
    prompt_pages: list[int] = field(default_factory=list)
    """Held from the first sample's start to the last one's, where pages are shared."""

    def __post_init__(self) -> None:
        self.to_generate = list(range(self.request.samples))
        """The samples by their indices, in the order in which they start."""

    def start_over(self) -> None:
        """Forgets slots, pages and what runs; samples that have finished stay finished."""
        self.to_generate = [index for index in range(self.request.samples) if index not in self.finished]
        self.started, self.part, self.prompt_pages = 0, 0, []

    @property
    def all_started(self) -> bool:
        """All of its samples that are to be generated."""
        return self.started == len(self.to_generate)

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
