"""The task: adding and subtracting two numbers below 100, asked in plain English.

A pair of numbers {a, b} is either for training or for testing, in every order, operation and phrasing: a
model that answers a held-out question has seen neither `a + b` nor `b + a` nor `a - b` in any wording. Which
it is depends on a hash of the pair alone, so that training and dataset agree without sharing a file.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from dataclasses import dataclass

LIMIT = 100
HELD_OUT_PERCENT = 15

PHRASINGS = {
    "add": (
        "What is {a} plus {b}?",
        "How much is {a} + {b}?",
        "Add {b} to {a}.",
        "What is the sum of {a} and {b}?",
        "Ann has {a} coins and finds {b} more. How many now?",
    ),
    "subtract": (
        "What is {a} minus {b}?",
        "How much is {a} - {b}?",
        "Subtract {b} from {a}.",
        "By how much is {a} more than {b}?",
        "Ann has {a} coins and spends {b}. How many now?",
    ),
}

PROMPT = "Q: {question}\nA:"
"""How the jobs write a question when they do not use the chat template."""


@dataclass(frozen=True)
class Problem:
    operation: str  # a key of PHRASINGS
    a: int
    b: int

    @property
    def answer(self) -> int:
        return self.a + self.b if self.operation == "add" else self.a - self.b

    @property
    def name(self) -> str:
        return f"{self.operation}-{self.a}-{self.b}"

    @property
    def is_held_out(self) -> bool:
        pair = f"{min(self.a, self.b)},{max(self.a, self.b)}"
        return int.from_bytes(hashlib.blake2b(pair.encode(), digest_size=8).digest()) % 100 < HELD_OUT_PERCENT

    def question(self, phrasing: int) -> str:
        return PHRASINGS[self.operation][phrasing].format(a=self.a, b=self.b)

    def choices(self, rng: random.Random) -> list[int]:
        """The answer among three near misses, in random order.

        All four have the same number of digits: a choice that begins another one (8 and 85) could only be the likelier.
        """
        near = {self.answer + slip for slip in (-20, -11, -10, -9, -2, -1, 1, 2, 9, 10, 11, 20)}
        misses = sorted(n for n in near if n >= 0 and len(str(n)) == len(str(self.answer)))
        choices = [self.answer, *rng.sample(misses, 3)]
        rng.shuffle(choices)
        return choices


def problems() -> Iterator[Problem]:
    """Every problem there is; differences are never negative."""
    for a in range(LIMIT):
        for b in range(LIMIT):
            yield Problem("add", a, b)
            if a >= b:
                yield Problem("subtract", a, b)
