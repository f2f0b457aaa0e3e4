"""What was foreseen of a job against what happened, by the counts of the engine and the manifest.

Compared is the work: prefill and decode, or scoring, without loading and compiling, and for the tokens there were. How
many tokens a job generates nobody knows beforehand, so that is compared by itself.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from jobs.wording import duration, few_digits
from schemas.manifest import Summary
from schemas.prediction import Prediction


@dataclass(frozen=True)
class Comparison:
    """A prediction of a whole job, and the sum of some of its shards."""

    prediction: Prediction
    done: Summary

    @property
    def is_scoring(self) -> bool:
        return self.prediction.slots_busy_fraction is None

    @property
    def foreseen_seconds(self) -> float:
        """Of work, for the tokens there were; for rows, where all is prompt."""
        if self.is_scoring:
            return self.prediction.prefill_seconds * self._share
        return self.prediction.work_seconds_of(self.done.prompt_tokens, self.done.completion_tokens)

    @property
    def interval(self) -> tuple[float, float]:
        """`foreseen_seconds`, one standard deviation less and more."""
        error = self.foreseen_seconds * self.prediction.error_fraction
        return max(0.0, self.foreseen_seconds - error), self.foreseen_seconds + error

    @property
    def seconds(self) -> float:
        """In which shards were being computed, less what went into compiling."""
        return max(0.0, self.done.busy_seconds - self.done.compile_seconds)

    @property
    def ratio(self) -> float | None:
        """Above 1 it took longer than was foreseen; None before there is anything to compare."""
        return self.seconds / self.foreseen_seconds if self.seconds and self.foreseen_seconds else None

    @property
    def mfu(self) -> float | None:
        if not self.seconds:
            return None
        tokens = self.done.prompt_tokens + self.done.completion_tokens
        if self.is_scoring:  # every continuation with its context
            tokens = self.prediction.prompt_tokens * self._share
        return self.prediction.mfu_of(tokens, self.seconds)

    @property
    def chip_hours(self) -> float:
        return self.done.busy_seconds * self.prediction.chip_count / 3600

    @property
    def price(self) -> float | None:
        """Of the time in which shards were being computed, at the price of the prediction."""
        price = self.prediction.price
        return None if price is None else price * self.chip_hours / self.prediction.chip_hours

    @property
    def _share(self) -> float:
        """Of the rows."""
        return self.done.ok / max(1, self.prediction.rows)

    def lines(self) -> Iterator[tuple[str, str]]:
        """A label and its text: foreseen against fact, one subject a line."""
        if self.ratio is None:
            return
        plan, done = self.prediction, self.done
        low, high = self.interval
        inside = low <= self.seconds <= high
        verdict = "within the interval" if inside else f"{self.ratio:.2f} times as long"
        yield (
            "work",
            f"{duration(self.seconds)}; foreseen for these tokens {duration(self.foreseen_seconds)}, "
            f"between {duration(low)} and {duration(high)}: {verdict}",
        )
        if not self.is_scoring and done.ok:
            per_row = plan.completion_tokens / max(1, plan.rows)
            yield "", f"{done.completion_tokens / done.ok:,.1f} tokens generated a row; foreseen {per_row:,.1f}"
        fractions = [
            ("slots", done.slots_busy_fraction, plan.slots_busy_fraction, "busy"),
            ("prefill", done.padding_fraction, plan.padding_fraction, "padding"),
            ("MFU", self.mfu, plan.mfu, ""),
        ]
        yield (
            "use",
            "; ".join(
                f"{what} {_percent(fact)} {word}".rstrip() + f", foreseen {_percent(foreseen)}"
                for what, fact, foreseen, word in fractions
                if fact is not None and foreseen is not None
            ),
        )
        yield "cost", self._cost()

    def _cost(self) -> str:
        plan = self.prediction
        if plan.price is None or self.price is None:
            foreseen = few_digits(plan.chip_hours)
            return f"{few_digits(self.chip_hours)} chip-hours in shards; foreseen {foreseen}, the start included"
        return (
            f"{few_digits(self.price)} {plan.currency} in shards, {few_digits(self.chip_hours)} chip-hours; foreseen "
            f"{few_digits(plan.price)}, the start included"
        )


def _percent(fraction: float) -> str:
    return f"{fraction:.1%}" if fraction < 0.1 else f"{fraction:.0%}"
