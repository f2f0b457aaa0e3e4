"""What goes wrong between a store and its client: drawn for each request by a seed, or asked for by a test.

The draw depends on the seed, the request, and how often just that request has come, and on nothing else: not on
time, threads or what other requests did. So a fault comes back with its seed.
"""

from __future__ import annotations

import random
import re
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

ERROR = "error"
"""503, 500 or 429; nothing was done."""
ERROR_AFTER = "error after"
"""503, but what was asked for was done."""
DROPPED = "dropped"
"""The connection is closed before anything is done."""
LOST = "lost"
"""It was done, and the connection is closed before the answer: the client will ask for it again."""
CUT = "cut"
"""The body of the answer ends in the middle, and the connection with it."""
SHORT = "short"
"""The body of the answer is half of it, and says it were all."""
SLOW = "slow"
"""The answer comes late."""

KINDS = (ERROR, ERROR_AFTER, DROPPED, LOST, CUT, SHORT, SLOW)

ERROR_STATUSES = (503, 500, 429)


_DRAWN_ANEW = re.compile(r"[0-9a-f]{12,}")  # ids of uploads, generations: another one in every run


@dataclass
class Faults:
    """`rate` is the share of requests that go wrong, in one of `kinds`."""

    rate: float = 0.0
    seed: int = 0
    kinds: Sequence[str] = KINDS
    slow_seconds: float = 0.2
    seen: Counter[str] = field(default_factory=Counter)
    """How often each kind happened; requests in all as `requests`."""
    _asked: list[tuple[str, Callable[[str, str], bool]]] = field(default_factory=list)
    _times: Counter[tuple[str, str]] = field(default_factory=Counter)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def ask(self, kind: str, method: str, part_of_url: str, times: int = 1) -> None:
        """The next `times` requests like this go wrong like that."""
        self._asked += [(kind, lambda m, url: m == method and part_of_url in url)] * times

    def draw(self, method: str, url: str) -> str | None:
        """What goes wrong with this request."""
        with self._lock:
            kind = self._draw(method, url)
            self.seen["requests"] += 1
            if kind:
                self.seen[kind] += 1
            return kind

    def status(self, method: str, url: str) -> int:
        """Of an ERROR."""
        return random.Random(f"{self.seed} {method} {url} {self._times[method, url]}").choice(ERROR_STATUSES)

    def _draw(self, method: str, url: str) -> str | None:
        for at, (kind, is_meant) in enumerate(self._asked):
            if is_meant(method, url):
                del self._asked[at]
                return kind
        url = _DRAWN_ANEW.sub("*", url)
        self._times[method, url] += 1
        chance = random.Random(f"{self.seed} {method} {url} {self._times[method, url]} {self.rate}")
        return chance.choice(self.kinds) if chance.random() < self.rate else None
