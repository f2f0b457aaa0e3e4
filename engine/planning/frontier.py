"""The plans that are worth a choice: those that no other beats in both time and cost (the paper's figure 1)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import TypeVar

T = TypeVar("T")


def frontier(plans: Iterable[T], *, seconds: Callable[[T], float], cost: Callable[[T], float]) -> list[T]:
    """The fastest first; each one after it is slower and cheaper. Of equals the first stays."""
    found: list[T] = []
    least = math.inf
    for plan in sorted(plans, key=lambda plan: (seconds(plan), cost(plan))):
        if cost(plan) < least:
            found.append(plan)
            least = cost(plan)
    return found
