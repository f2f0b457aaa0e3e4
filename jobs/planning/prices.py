"""What chips cost, from a table of the user's: prices change and differ by region and contract, so none are built in.

YAML or CSV, with the day on which it was true, which is shown with every cost:

    date: 2026-11-01                      chip,chip_hour,date,currency
    currency: USD                         v5e,1.20,2026-11-01,USD
    chip_hour: {v5e: 1.20, v6e: 2.70}     v6e,2.70,2026-11-01,USD
"""

from __future__ import annotations

import csv
import datetime
import io
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.errors import NoFeasiblePlan
from engine.planning.chips import named_chip
from jobs.document import LIMIT_BYTES, parse
from pipeline.errors import JobError
from pipeline.storage import read_bytes

CPU = "cpu"
"""A processor as it was measured, whole."""

_CSV_COLUMNS = {"chip", "chip_hour", "date", "currency"}
_YAML_KEYS = {"date", "currency", "chip_hour"}


@dataclass(frozen=True)
class Prices:
    """Of a chip for an hour, by the chip's name."""

    chip_hour: Mapping[str, float]
    date: str
    currency: str
    source: str
    """The file."""

    def money(self, chip: str, chip_seconds: float) -> float | None:
        """None for a chip that is not in the table."""
        price = self.chip_hour.get(chip)
        return None if price is None else price * chip_seconds / 3600


def prices_at() -> Path:
    """Where a user may keep prices, so that they need not be named."""
    config = os.environ.get("XDG_CONFIG_HOME")
    return (Path(config) if config else Path.home() / ".config") / "penstock" / "prices.yaml"


def prices_known(path: str | None) -> Prices | None:
    """The table in a file, or else the user's own, if there is one."""
    kept = prices_at()
    return read_prices(path) if path else read_prices(str(kept)) if kept.exists() else None


def read_prices(path: str) -> Prices:
    """The table in a file; JobError says what is wrong with it."""
    try:
        text = read_bytes(path, limit_bytes=LIMIT_BYTES).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise JobError(f"{path} is not UTF-8 text: {error.reason} at byte {error.start}") from error
    except OSError as error:
        raise JobError(f"cannot read the prices {path}: {getattr(error, 'strerror', None) or error}") from error
    return _of_csv(text, path) if path.lower().endswith(".csv") else _of_yaml(text, path)


def _of_yaml(text: str, path: str) -> Prices:
    values = parse(text, source=path).values
    if not isinstance(values, dict) or set(values) != _YAML_KEYS or not isinstance(values["chip_hour"], dict):
        raise JobError(f"{path}: prices are a mapping with date, currency and chip_hour: {{chip: price of an hour}}")
    prices = {_chip(name, path): _price(price, name, path) for name, price in values["chip_hour"].items()}
    return _checked(prices, values["date"], values["currency"], path)


def _of_csv(text: str, path: str) -> Prices:
    rows = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    prices: dict[str, float] = {}
    said: set[tuple[str, str]] = set()
    try:
        if set(rows.fieldnames or ()) != _CSV_COLUMNS:
            raise JobError(f"{path}: the first line must name the columns {', '.join(sorted(_CSV_COLUMNS))}")
        for row in rows:
            if None in row or None in row.values():
                raise JobError(f"{path}:{rows.line_num}: a line has {len(_CSV_COLUMNS)} values")
            name = _chip(row["chip"], path)
            if name in prices:
                raise JobError(f"{path}:{rows.line_num}: {name} is priced twice")
            prices[name] = _price(row["chip_hour"], name, path)
            said.add((row["date"], row["currency"]))
    except csv.Error as error:
        raise JobError(f"{path}:{rows.line_num}: not valid CSV: {error}") from error
    if len(said) != 1:
        raise JobError(f"{path}: all prices must be of one date and currency; there are {len(said)}")
    return _checked(prices, *said.pop(), path)


def _chip(name: str, path: str) -> str:
    if name == CPU:
        return CPU
    try:
        return named_chip(str(name)).name
    except NoFeasiblePlan as error:
        raise JobError(f"{path}: {error}") from error


def _price(value: Any, chip: str, path: str) -> float:
    try:
        price = float(value)
    except (TypeError, ValueError):
        price = math.nan
    if isinstance(value, bool) or not math.isfinite(price) or price <= 0:
        raise JobError(f"{path}: the price of {chip} is {value!r}, not a positive number")
    return price


def _checked(prices: dict[str, float], date: Any, currency: Any, path: str) -> Prices:
    if not prices:
        raise JobError(f"{path} has no price")
    try:
        datetime.date.fromisoformat(str(date))
    except ValueError as error:
        raise JobError(f"{path}: date is {date!r}; write the day of the prices as 2026-11-01") from error
    if not isinstance(currency, str) or not currency.strip():
        raise JobError(f"{path}: currency is {currency!r}; write such as USD")
    return Prices(prices, str(date), currency.strip(), path)
