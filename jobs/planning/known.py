"""What a user keeps that bears on a prediction: how earlier runs went, and prices."""

from __future__ import annotations

from dataclasses import dataclass

from jobs.planning.history import NOTHING_KNOWN, History, read_history
from jobs.planning.prices import Prices, prices_known
from pipeline.errors import PenstockError


@dataclass(frozen=True)
class Known:
    """What a prediction is made with."""

    history: History = NOTHING_KNOWN
    prices: Prices | None = None
    notes: tuple[str, ...] = ()
    """What of it could not be read."""

    @classmethod
    def read(cls, prices_path: str | None) -> Known:
        """What the user keeps. Prices that are asked for by name must be right; of others a note says what is wrong."""
        history, notes, prices = read_history(), [], None
        try:
            prices = prices_known(prices_path)
        except PenstockError as error:
            if prices_path:
                raise
            notes.append(f"no cost: {error}")
        return cls(history, prices, (*notes, *([history.note] if history.note else [])))
