"""How far a running job is, live: a line that redraws itself in a terminal, a plain line now and then elsewhere.

Rates are those of the last half minute, so the time left follows what the run does now: the first shard compiles
programs, and a resumed run has nothing to do with the speed of an earlier one.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Self

from jobs.wording import duration

if TYPE_CHECKING:
    from rich.console import Console

WINDOW_SECONDS = 30.0
REDRAW_SECONDS = 0.5
LINE_SECONDS = 15.0


@dataclass(frozen=True)
class Counts:
    """What has happened so far: records of the whole job, tokens of any origin as long as they only grow."""

    done: int
    failed: int
    tokens: int


class Rates:
    """Records and tokens per second over the last `WINDOW_SECONDS`."""

    def __init__(self) -> None:
        self._seen: deque[tuple[float, Counts]] = deque()

    def add(self, seconds: float, counts: Counts) -> None:
        self._seen.append((seconds, counts))
        while self._seen[-1][0] - self._seen[0][0] > WINDOW_SECONDS:
            self._seen.popleft()

    @property
    def records(self) -> float:
        return self._per_second(lambda counts: counts.done)

    @property
    def tokens(self) -> float:
        return self._per_second(lambda counts: counts.tokens)

    def _per_second(self, count: Callable[[Counts], int]) -> float:
        (start, first), (end, last) = self._seen[0], self._seen[-1]
        return (count(last) - count(first)) / (end - start) if end > start else 0.0


def describe(counts: Counts, rates: Rates, total: int) -> str:
    """The state of a run in one line."""
    words = [f"{counts.done:,} of {total:,} rows done", f"{counts.failed:,} failed"]
    if rates.tokens:
        words.append(f"{rates.tokens:,.0f} tokens/s")
    if rates.records and counts.done < total:
        words.append(f"about {duration((total - counts.done) / rates.records)} left")
    return ", ".join(words)


class Progress:
    """Shows the counts that `read` returns, from a thread of its own, while the block runs."""

    def __init__(self, name: str, total: int, read: Callable[[], Counts], console: Console) -> None:
        self._name, self._total, self._read, self._console = name, total, read, console
        self._rates = Rates()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="progress", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._ended.set()
        self._thread.join()

    def _watch(self) -> None:
        if self._console.is_terminal:
            self._redraw()
        else:
            while not self._ended.wait(LINE_SECONDS):
                _, line = self._line()
                self._console.print(f"{self._name}: {line}", highlight=False, soft_wrap=True)

    def _redraw(self) -> None:
        from rich.progress import BarColumn, TextColumn
        from rich.progress import Progress as Bar

        bar = Bar(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.fields[line]}"),
            console=self._console,
            transient=True,
            auto_refresh=False,
            redirect_stdout=False,
            redirect_stderr=False,
        )
        with bar:
            task = bar.add_task(self._name, total=self._total, line="starting")
            while not self._ended.wait(REDRAW_SECONDS):
                counts, line = self._line()
                bar.update(task, completed=counts.done, line=line, refresh=True)

    def _line(self) -> tuple[Counts, str]:
        counts = self._read()
        self._rates.add(time.monotonic(), counts)
        return counts, describe(counts, self._rates, self._total)
