"""What a plan is to be: the cheapest, the fastest if need be within a budget, or the cheapest that is done by then."""

from __future__ import annotations

import argparse
import math
import re
from dataclasses import dataclass

from pipeline.errors import JobError

_UNITS = {"s": 1, "min": 60, "h": 3600, "d": 86400}


@dataclass(frozen=True)
class Goal:
    """Budget and deadline hold with the upper end of what is foreseen."""

    name: str = "cheapest"
    budget: float | None = None
    """In the currency of the prices."""
    deadline_seconds: float | None = None
    said: str = ""
    """The option that asks for it; empty where nobody did."""

    @property
    def compares_costs(self) -> bool:
        return self.name != "fastest" or self.budget is not None

    @classmethod
    def of(cls, options: argparse.Namespace) -> Goal:
        """As the command line says it, where a budget or a deadline alone says it too."""
        budget = None if options.budget is None else _money(options.budget)
        deadline = None if options.deadline is None else _seconds(options.deadline)
        implied = "fastest" if budget is not None else "deadline" if deadline is not None else "cheapest"
        goal = options.goal or implied
        if budget is not None and goal != "fastest":
            raise JobError(f"--budget goes with --goal fastest, not {goal}")
        if deadline is not None and goal != "deadline":
            raise JobError(f"--deadline goes with --goal deadline, not {goal}")
        if goal == "deadline" and deadline is None:
            raise JobError("--goal deadline needs --deadline, such as 90min, 6h or 2d")
        said = [option for option in ("budget", "deadline", "goal") if getattr(options, option) is not None]
        return cls(goal, budget, deadline, f"--{said[0]}" if said else "")

    def refuse_without_prices(self, known: bool) -> None:
        if self.budget is not None and not known:
            raise JobError("--budget needs to know what chips cost: --prices FILE")


CHEAPEST = Goal()


def _money(text: str) -> float:
    try:
        money = float(text)
    except ValueError:
        money = math.nan
    if not money > 0 or math.isinf(money):
        raise JobError(f"--budget {text}: write a positive number, in the currency of the prices")
    return money


def _seconds(text: str) -> float:
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(s|min|h|d)", text)
    if found is None or float(found[1]) <= 0:
        raise JobError(f"--deadline {text}: write a time such as 90min, 6h or 2d")
    return float(found[1]) * _UNITS[found[2]]
