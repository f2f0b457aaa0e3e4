"""Whether a partition differs from those before it more than chance allows.

Distributions are compared by the population stability index, over the tenths of the baseline (or over categories):

    PSI = sum over bins of (p - q) * ln(p / q)        p: share of the partition in a bin, q: of the baseline

Above 0.25 it counts as a major shift (N. Siddiqi, Credit Risk Scorecards, 2006). Small samples reach that by chance:
without a shift, PSI * n * m / (n + m) is chi-squared with bins - 1 degrees of freedom (B. Yurdakul and J. Naranjo,
Statistical properties of the population stability index, Journal of Risk Model Validation 14(4), 2020). A flag needs
both: PSI above 0.25, and above the 99.9 % quantile of that.

Failure rates are compared by the two-proportion z test (pooled variance): a flag needs |z| above 3.29, which chance
exceeds once in a thousand times, and a difference of at least one percentage point.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

PSI_THRESHOLD = 0.25
Z_THRESHOLD = 3.29
LEAST_RATE_CHANGE = 0.01
BINS = 10
_QUANTILES_999 = (0.0, 10.828, 13.816, 16.266, 18.467, 20.515, 22.458, 24.322, 26.124, 27.877, 29.588)


@dataclass(frozen=True)
class Shift:
    """How far one measure has moved: an index or a z score, and what it would have to exceed."""

    value: float
    threshold: float

    @property
    def is_drift(self) -> bool:
        return self.value > self.threshold


def of_values(now: np.ndarray, before: np.ndarray) -> Shift | None:
    """Of a number; None where one side is empty."""
    if not (now.size and before.size):
        return None
    inner = _edges(before)
    return _index(*(np.bincount(np.searchsorted(inner, x), minlength=len(inner) + 1) for x in (now, before)))


def _edges(before: np.ndarray) -> np.ndarray:
    """Between the bins: the tenths of the baseline. A value that fills a tenth by itself has a bin of its own."""
    tenths = np.quantile(before, np.linspace(0, 1, BINS + 1)[1:-1])
    edges, counts = np.unique(tenths, return_counts=True)
    return np.unique(np.concatenate([edges, np.nextafter(edges[counts > 1], -np.inf)]))


def of_categories(now: Mapping[str, int], before: Mapping[str, int]) -> Shift | None:
    """Of a choice among names; None where one side is empty."""
    names = sorted({*now, *before})
    counts = [np.array([side.get(name, 0) for name in names]) for side in (now, before)]
    return _index(*counts) if all(count.sum() for count in counts) else None


def of_rates(failed: int, rows: int, failed_before: int, rows_before: int) -> Shift | None:
    """Of the share of failed rows, as |z|; None where one side is empty."""
    if not (rows and rows_before):
        return None
    pooled = (failed + failed_before) / (rows + rows_before)
    difference = abs(failed / rows - failed_before / rows_before)
    error = math.sqrt(pooled * (1 - pooled) * (1 / rows + 1 / rows_before))
    z = difference / error if error else 0.0
    return Shift(z, Z_THRESHOLD if difference >= LEAST_RATE_CHANGE else math.inf)


def _index(now: np.ndarray, before: np.ndarray) -> Shift:
    """Of counts by bin. Half a row is added to each bin, so that an empty one has a logarithm."""
    used = (now + before) > 0
    now, before = now[used], before[used]
    n, m, bins = int(now.sum()), int(before.sum()), len(now)
    p, q = (now + 0.5) / (n + 0.5 * bins), (before + 0.5) / (m + 0.5 * bins)
    by_chance = _chi_squared_999(bins - 1) * (1 / n + 1 / m)
    return Shift(float(np.sum((p - q) * np.log(p / q))), max(PSI_THRESHOLD, by_chance))


def _chi_squared_999(degrees: int) -> float:
    """The 99.9 % quantile of chi-squared: a table, then Wilson and Hilferty's cube (1931; at most 0.6 % high)."""
    if degrees < len(_QUANTILES_999):
        return _QUANTILES_999[degrees]
    part = 2 / (9 * degrees)
    return degrees * (1 - part + 3.0902 * math.sqrt(part)) ** 3
